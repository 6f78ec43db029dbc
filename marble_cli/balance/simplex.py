"""The nearest point to the origin in the hull of K points, from their inner products alone.

Every quadratic programme of the balances has this shape: minimise z^T G z over z >= 0, sum z = 1. A floor
under the coefficients only moves the points (`shift`). `refine` is Wolfe's active-set method (1976, "Finding
the nearest point in a polytope"): finite, and exact to rounding from any starting point. `gap` certifies a
solution whoever found it.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SUPPORT = 1e-8
SLACK = 1e-13


def shift(size: int, floor: float) -> Array:
    """Map from the plain simplex onto the one with a_k >= floor: a = F z, and G becomes F G F.

    Args:
        size: K.
        floor: least coefficient, with K floor <= 1.

    Returns:
        F, [K, K] symmetric: floor + (1 - K floor) I.
    """
    return floor + max(0.0, 1.0 - size * floor) * np.eye(size)


def gap(gram: Array, alpha: Array, floor: float) -> float:
    """Certificate: a^T G a - min_b b^T G a over the feasible b, zero exactly at the optimum.

    It bounds how far a^T G a / 2 lies above the least value, as the programme is convex.

    Args:
        gram: [K, K].
        alpha: [K] feasible.
        floor: least coefficient.
    """
    along = gram @ alpha
    least = floor * along.sum() + max(0.0, 1.0 - len(alpha) * floor) * along.min()
    return max(0.0, float(alpha @ along - least))


def standard_form(gram: Array) -> tuple[Array, Array]:
    """Rescale the points to unit length: minimise y^T U y over y >= 0, u . y = 1, where z = u y.

    Points whose lengths differ by many orders of magnitude then stand on one footing.

    Args:
        gram: [K, K] with a positive diagonal.

    Returns:
        U [K, K] with unit diagonal, and u [K], the inverse lengths, the largest of them 1.
    """
    length = np.sqrt(gram.diagonal())
    return gram / length[:, None] / length, length.min() / length


def refine(unit: Array, inverse: Array, start: Array) -> Array:
    """Solve `standard_form` exactly, from a feasible start.

    Args:
        unit: U, [K, K].
        inverse: u, [K].
        start: [K] non-negative and not all zero; a good one spares most of the steps.

    Returns:
        y [K] >= 0 with u . y = 1, the best point met.
    """
    y = start / (inverse @ start)
    support = y > SUPPORT * y.max()
    best, least = y, np.inf
    seen: set[bytes] = set()
    while support.tobytes() not in seen:
        seen.add(support.tobytes())
        y, support = _descend(unit, inverse, np.where(support, y, 0.0), support)
        along = unit @ y
        slack = along - (y @ along) * inverse
        violation = max(0.0, -slack.min()) / y.sum()
        if violation < least:
            best, least = y, violation
        if violation <= SLACK:
            break
        support = support.copy()
        support[slack.argmin()] = True
    return best


def _descend(
    unit: Array, inverse: Array, y: Array, support: NDArray[np.bool_]
) -> tuple[Array, NDArray[np.bool_]]:
    """Walk to the minimum over the support's affine hull, giving up a coefficient at each wall met."""
    while True:
        target = np.zeros_like(y)
        target[support] = _affine_minimum(unit[np.ix_(support, support)], inverse[support])
        outside = support & (target <= 0.0)
        if not outside.any():
            return target, support
        step = np.full_like(y, np.inf)
        step[outside] = y[outside] / (y[outside] - target[outside] + np.finfo(float).tiny)
        y = y + min(1.0, step.min()) * (target - y)
        support = support & ~(outside & (step <= step.min()))
        y = np.where(support, np.maximum(y, 0.0), 0.0)


def _affine_minimum(unit: Array, inverse: Array) -> Array:
    """Minimise y^T U y subject to u . y = 1, of least norm where points coincide and there are many minima.

    (U + u u^T) y = u has the minimum's direction, even where U is singular because the minimum is zero.
    """
    scaled = inverse / inverse.max()
    cutoff = len(inverse) * np.finfo(float).eps
    y: Array = np.linalg.lstsq(unit + np.outer(scaled, scaled), scaled, rcond=cutoff)[0]
    return y / (inverse @ y)
