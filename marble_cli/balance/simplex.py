"""Find the nearest point to the origin in the hull of K points, from their inner products alone.

Every QP of the balances has this form: minimise z^T G z over z >= 0, sum z = 1. A floor under the
coefficients and priorities only move the points (`mapping`). `refine` is Wolfe's active-set method (1976,
"Finding the nearest point in a polytope"): finite, and exact to rounding from any starting point. `gap`
certifies the solution of any solver.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SUPPORT = 1e-8  # of the largest coefficient: smaller ones of a proposal start at zero
SLACK = 1e-14  # violation of optimality that is rounding


def mapping(size: int, floor: float, priorities: Array) -> Array:
    """Return the points of the QP as combinations of the gradients: p_k = sum_j M_kj g_j.

    The floor pulls every point towards the others, and the priority pi_k divides the point. At the optimum d
    of the QP, d . p_k >= |d|^2 for every k.

    Args:
        size: K.
        floor: smallest share, with K floor <= 1.
        priorities: [K] positive.

    Returns:
        M = (floor + (1 - K floor) I) / pi, [K, K]. Coefficients z of the points are the shares M^T z / sum
        M^T z of the gradients, each at least the floor.
    """
    moved: Array = floor + max(0.0, 1.0 - size * floor) * np.eye(size)
    return moved / priorities[:, None]


def gap(gram: Array, z: Array) -> float:
    """Certify a solution by its gap z^T G z - min_k (G z)_k, which is zero exactly at the optimum.

    As the QP is convex, z^T G z / 2 is at most the gap above the minimum. A negative z^T G z, which no inner
    products have, counts as a gap of its size.

    Args:
        gram: [K, K] of the points.
        z: [K] on the simplex.

    Returns:
        The gap, at least 0; NaN if an entry that z weighs is NaN.
    """
    along = gram @ z
    square = z @ along
    return float(np.max(np.array([square - along.min(), -square, 0.0])))


def standard_form(gram: Array) -> tuple[Array, Array]:
    """Rescale the points to unit length: minimise y^T U y over y >= 0, u . y = 1, where z = u y.

    This conditions points whose lengths differ by many orders of magnitude.

    Args:
        gram: [K, K] with a positive diagonal.

    Returns:
        U [K, K] with unit diagonal, and u [K], the inverse lengths, the largest of them 1.
    """
    length = np.sqrt(gram.diagonal())
    return gram / length[:, None] / length, length.min() / length


def violation(unit: Array, inverse: Array, y: Array) -> tuple[float, Array]:
    """Measure by how much y violates optimality in `standard_form`, and return each coefficient's slack.

    The slack (U y)_k - (y^T U y) u_k is non-negative for every k exactly at the optimum.

    Args:
        unit: U, [K, K].
        inverse: u, [K].
        y: [K] >= 0 with u . y = 1.
    """
    along = unit @ y
    slack: Array = along - (y @ along) * inverse
    return max(0.0, -float(slack.min())) / float(y.sum()), slack


def refine(unit: Array, inverse: Array, start: Array) -> Array:
    """Solve `standard_form` to rounding from a feasible start, which is returned if it is optimal.

    Args:
        unit: U, [K, K].
        inverse: u, [K].
        start: [K] non-negative and not all zero; a good one saves most of the iterations.

    Returns:
        y [K] >= 0 with u . y = 1, the best of all iterations.
    """
    y = np.where(start > SUPPORT * start.max(), start, 0.0)
    y = best = y / (inverse @ y)
    support = y > 0.0
    seen: set[bytes] = set()
    least, slack = violation(unit, inverse, y)
    while least > SLACK and support.tobytes() not in seen:
        seen.add(support.tobytes())
        y, support = _descend(unit, inverse, np.where(support, y, 0.0), support)
        excess, slack = violation(unit, inverse, y)
        if excess < least:
            best, least = y, excess
        support = support.copy()
        support[slack.argmin()] = True
    return best


def _descend(
    unit: Array, inverse: Array, y: Array, support: NDArray[np.bool_]
) -> tuple[Array, NDArray[np.bool_]]:
    """Move to the minimum over the support's affine hull, dropping a coefficient whenever it reaches zero."""
    last_slope = np.inf
    while True:
        move, slope = _newton(unit[np.ix_(support, support)], inverse[support], y[support])
        if slope >= 0.5 * last_slope:
            return y, support
        target = y.copy()
        target[support] += move
        outside = support & (target <= 0.0)
        if not outside.any():
            y, last_slope = target / (inverse @ target), slope
            continue
        step = np.full_like(y, np.inf)
        step[outside] = y[outside] / (y[outside] - target[outside] + np.finfo(float).tiny)
        y = y + min(1.0, step.min()) * (target - y)
        last_slope, support = np.inf, support & ~(outside & (step <= step.min()))
        y = np.where(support, np.maximum(y, 0.0), 0.0)


def _newton(unit: Array, inverse: Array, y: Array) -> tuple[Array, float]:
    """Return the move from y to the minimum of y^T U y / 2 with u . y fixed, and the largest slope at y.

    Curvature below rounding is replaced by the size of rounding. The move then stays finite and leads
    downhill, and if the slope exceeds rounding, it is long enough to bring a coefficient to zero.
    """
    normal = inverse / np.linalg.norm(inverse)
    along = unit @ y
    slope = along - normal * (normal @ along)
    across = unit @ normal
    held = unit - np.outer(normal, across) - np.outer(across, normal)
    held += np.outer(normal, normal) * (normal @ across + 1.0)
    curvature, axes = np.linalg.eigh(held)
    rounding = len(y) * np.finfo(float).eps
    move: Array = -axes @ ((axes.T @ slope) / np.maximum(curvature, rounding))
    return move - normal * (normal @ move), float(np.abs(slope).max())
