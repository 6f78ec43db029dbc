"""Project a vector onto the directions that push no reward down, from inner products alone.

These directions form the cone {d : d . u_k >= 0 for every k}. As for the other QP (`solver`), a solver
proposes, an exact solution on its support polishes, and the optimality conditions certify.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from marble_cli.balance.simplex import SUPPORT, Array
from marble_cli.balance.solver import MAXIMUM_GAP, propose
from marble_cli.balance.workspace import is_convex
from marble_cli.errors import BalanceError

PRECISE = {"eps_abs": 1e-9, "eps_rel": 1e-9}  # of OSQP, whose support then is the solution's


@dataclass(frozen=True)
class Projection:
    """Certified projection d = d0 + sum_k m_k u_k.

    Attributes:
        multipliers: m, [K] float64, not negative; zero where d does not oppose u_k anyway.
        residual: the largest violation of d . u_k >= 0, and of min(m_k, 1) (d . u_k) = 0.
        solver: name of the solver of the accepted solution; "none" if d0 is in the cone.
        fallbacks: number of solvers that were refused before.
    """

    multipliers: Array
    residual: float
    solver: str
    fallbacks: int


def project(unit: Array, along: Array, solver: str = "osqp") -> Projection:
    """Minimise |d - d0|^2 / 2 over d . u_k >= 0, by its dual: m^T U m / 2 + along . m over m >= 0.

    Args:
        unit: U, [K, K] float64, the inner products of the u_k, which have unit length.
        along: [K] float64, d0 . u_k, for a d0 of at most unit length.
        solver: "osqp", "active_set" or a name known to qpsolvers; "active_set" replaces a solver that fails.

    Returns:
        A projection whose residual is at most 1e-10.

    Raises:
        BalanceError: no solver reached that.
    """
    size = len(along)
    if along.min() >= 0.0:
        return Projection(np.zeros(size), 0.0, "none", 0)
    refused: list[str] = []
    for name in dict.fromkeys((solver, "active_set")):
        multipliers = _polish(unit, along, _propose(unit, along, name))
        measured = residual(unit, along, multipliers)
        if measured <= MAXIMUM_GAP:
            return Projection(multipliers, measured, name, len(refused))
        refused.append(f"{name} (residual {measured:.1e})")
    raise BalanceError(
        f"balance.solver: {', '.join(refused)} missed the residual of {MAXIMUM_GAP:g} with {size} rewards. "
        "The matrix may not be one of inner products. Try another solver, or report it with its entries"
    )


def residual(unit: Array, along: Array, multipliers: Array) -> float:
    """Measure how far multipliers [K] are from optimal; infinite if one is negative or NaN.

    A multiplier above 1 counts as 1: those of nearly opposite vectors are large, and would multiply the
    rounding of d . u_k.
    """
    if not (multipliers >= 0.0).all():
        return float("inf")
    slack = along + unit @ multipliers
    return float(np.max([0.0, -slack.min(), np.abs(np.minimum(multipliers, 1.0) * slack).max()]))


def _polish(unit: Array, along: Array, proposal: Array) -> Array:
    """Solve exactly for the multipliers that a proposal [K] holds above zero; NaN if it is not finite."""
    if not np.isfinite(proposal).all():
        return proposal
    held = proposal > SUPPORT * max(1.0, proposal.max())
    polished = np.zeros_like(proposal)
    polished[held] = np.linalg.lstsq(unit[np.ix_(held, held)], -along[held], rcond=None)[0]
    return polished if (polished >= 0.0).all() else np.maximum(proposal, 0.0)


def _propose(unit: Array, along: Array, solver: str) -> Array:
    """Return a solver's own multipliers [K]; NaN if it has none."""
    none = np.full(len(along), np.nan)
    if not is_convex(unit):
        return none
    if solver != "active_set":
        return _qpsolvers(unit, along, solver)
    try:
        return _least_squares(unit, along)
    except (ValueError, ArithmeticError, RuntimeError):  # RuntimeError: out of iterations
        return none


def _least_squares(unit: Array, along: Array) -> Array:
    """Solve by Lawson and Hanson's active-set method: |A m - b|, where A^T A = U and A^T b = -along."""
    square, axes = np.linalg.eigh(unit)
    length = np.sqrt(np.maximum(square, 0.0))
    kept = square > len(unit) * np.finfo(float).eps
    target = -(axes.T @ along)[kept] / length[kept]
    return np.asarray(nnls((axes * length).T[kept], target)[0], dtype=np.float64)


def _qpsolvers(unit: Array, along: Array, solver: str) -> Array:
    import qpsolvers

    problem = qpsolvers.Problem(unit, along, lb=np.zeros(len(along)))
    return propose(problem, solver, **(PRECISE if solver == "osqp" else {}))
