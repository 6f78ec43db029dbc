"""Solve the dual of a projection exactly: minimise m^T U m / 2 + a . m over 0 <= m <= M, from any start.

U holds the inner products of vectors of unit length. It may be singular, as long as no multiplier without a
bound can grow for ever. This is the active-set method of bounded least squares (Stark and Parker 1995), on
inner products. `residual` certifies the solution of any solver.
"""

import numpy as np
from numpy.typing import NDArray

from marble_cli.balance.simplex import SLACK, SUPPORT, Array


def residual(unit: Array, along: Array, multipliers: Array, most: Array) -> float:
    """Measure how far multipliers [K] are from optimal; infinite if one is out of bounds or NaN.

    The slack a + U m has to be at least 0 where m < M, and at most 0 where m > 0. A multiplier above 1 counts
    as 1: those of nearly opposite vectors are large, and would multiply the rounding of the slack.
    """
    if not ((multipliers >= 0.0) & (multipliers <= most)).all():
        return float("inf")
    slack = along + unit @ multipliers
    low = np.minimum(most - multipliers, 1.0) * -slack
    high = np.minimum(multipliers, 1.0) * slack
    return float(np.max([0.0, low.max(), high.max()]))


def polish(unit: Array, along: Array, most: Array, proposal: Array) -> Array:
    """Solve with the bounds that a proposal [K] has reached held, for the shortest multipliers of its others.

    A proposal whose others would leave their bounds is returned within bounds.
    """
    m = _snap(proposal, most)
    free = (m > 0.0) & (m < most)
    held = np.where(free, 0.0, m)
    target = -(along + unit @ held)[free]
    polished = held.copy()
    polished[free] = np.linalg.lstsq(unit[np.ix_(free, free)], target, rcond=None)[0]
    inside = (polished >= 0.0) & (polished <= most)
    return polished if inside.all() else np.clip(proposal, 0.0, most)


def refine(unit: Array, along: Array, most: Array, start: Array) -> Array:
    """Solve to rounding from a finite start, which is returned within bounds if it is optimal.

    Args:
        unit: U, [K, K] with a unit diagonal.
        along: a, [K].
        most: M, [K], infinite for a multiplier without a bound.
        start: [K]; a good one saves most of the iterations.

    Returns:
        m, [K], the best of all iterations.
    """
    m = best = _snap(start, most)
    free = (m > 0.0) & (m < most)
    seen: set[bytes] = set()
    least = residual(unit, along, m, most)
    while least > SLACK and (key := free.tobytes() + (m >= most).tobytes()) not in seen:
        seen.add(key)
        m, free = _descend(unit, along, most, m, free)
        measured = residual(unit, along, m, most)
        if measured < least:
            best, least = m, measured
        slack = along + unit @ m
        inward = np.where(m < most, -slack, slack)
        free = free.copy()
        free[np.where(free, -np.inf, inward).argmax()] = True
    return best


def _snap(start: Array, most: Array) -> Array:
    """Bring multipliers that are on a bound up to rounding onto it."""
    start = np.where(start > SUPPORT * max(1.0, start.max()), start, 0.0)
    return np.where(start >= most * (1.0 - SUPPORT), most, start)


def _descend(
    unit: Array, along: Array, most: Array, m: Array, free: NDArray[np.bool_]
) -> tuple[Array, NDArray[np.bool_]]:
    """Move to the minimum over the free multipliers, and hold each that reaches a bound there."""
    last_slope = np.inf
    while free.any():
        slope = (along + unit @ m)[free]
        if np.abs(slope).max() >= 0.5 * last_slope:
            break
        move = np.zeros_like(m)
        move[free] = _newton(unit[np.ix_(free, free)], slope)
        target = m + move
        outside = free & ((target <= 0.0) | (target >= most))
        if not outside.any():
            m, last_slope = target, float(np.abs(slope).max())
            continue
        step = np.full_like(m, np.inf)
        bound = np.where(move > 0.0, most, 0.0)
        step[outside] = (bound - m)[outside] / np.where(move == 0.0, 1.0, move)[outside]
        reached = step <= step.min()
        m = np.where(reached, bound, np.clip(m + step.min() * move, 0.0, most))
        last_slope, free = np.inf, free & ~reached
    return m, free


def _newton(unit: Array, slope: Array) -> Array:
    """Return the move to the minimum; curvature below rounding is replaced by the size of rounding.

    The move then stays finite and leads downhill. Where the slope exceeds rounding, it is long enough to
    reach a bound.
    """
    curvature, axes = np.linalg.eigh(unit)
    rounding = len(slope) * np.finfo(float).eps
    move: Array = -axes @ ((axes.T @ slope) / np.maximum(curvature, rounding))
    return move
