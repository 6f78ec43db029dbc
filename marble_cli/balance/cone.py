"""Project a vector onto the directions that push no reward down, from inner products alone.

These directions form the cone {d : d . u_k >= 0 for every k}; guards lift some of its faces by a margin. As
for the other QP (`solver`), a solver proposes, an active-set method polishes (`box`), and the optimality
conditions certify.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from marble_cli.balance.box import polish, refine, residual
from marble_cli.balance.simplex import Array
from marble_cli.balance.solver import MAXIMUM_GAP, propose
from marble_cli.balance.workspace import is_convex
from marble_cli.errors import BalanceError

PRECISE = {"eps_abs": 1e-9, "eps_rel": 1e-9}  # of OSQP, whose support then is the solution's


@dataclass(frozen=True)
class Projection:
    """Certified projection d = d0 + sum_k m_k u_k.

    Attributes:
        multipliers: m, [K] float64, not negative; zero where d does not oppose u_k anyway.
        residual: `box.residual`: the largest violation of d . u_k >= 0 and of complementarity.
        solver: name of the solver of the accepted solution; "none" if d0 is in the cone.
        fallbacks: number of solvers that were refused before.
    """

    multipliers: Array
    residual: float
    solver: str
    fallbacks: int


def project(unit: Array, along: Array, solver: str = "osqp", most: Array | None = None) -> Projection:
    """Minimise |d - d0|^2 / 2 over d . u_k >= 0, by its dual: m^T U m / 2 + along . m over m >= 0.

    A constraint with a largest multiplier M_k yields: it costs M_k per unit to violate it.

    Args:
        unit: U, [K, K] float64, the inner products of the u_k, which have unit length.
        along: [K] float64, d0 . u_k, for a d0 of at most unit length. Subtract b_k for d . u_k >= b_k.
        solver: "osqp", "active_set" or a name known to qpsolvers; "active_set" replaces a solver that fails.
        most: M, [K]; infinite for constraints that hold, as all do if None.

    Returns:
        A projection whose residual is at most 1e-10.

    Raises:
        BalanceError: no solver reached that.
    """
    size = len(along)
    most = np.full(size, np.inf) if most is None else most
    if not size or along.min() >= 0.0:
        return Projection(np.zeros(size), 0.0, "none", 0)
    refused: list[str] = []
    for name in dict.fromkeys((solver, "active_set")):
        measured = np.inf
        for multipliers in _candidates(unit, along, most, name):
            measured = residual(unit, along, multipliers, most)
            if measured <= MAXIMUM_GAP:
                return Projection(multipliers, measured, name, len(refused))
        refused.append(f"{name} (residual {measured:.1e})")
    raise BalanceError(
        f"balance.solver: {', '.join(refused)} missed the residual of {MAXIMUM_GAP:g} with {size} rewards. "
        "Two gradients may be opposite up to rounding, or the matrix not one of inner products. Try another "
        "solver, or report it with its entries"
    )


def _candidates(unit: Array, along: Array, most: Array, solver: str) -> Iterator[Array]:
    """Yield a solver's multipliers [K] polished, then refined and polished, then refined alone."""
    proposal = _propose(unit, along, most, solver)
    if np.isfinite(proposal).all():
        yield polish(unit, along, most, proposal)
        refined = refine(unit, along, most, proposal)
        yield polish(unit, along, most, refined)
        yield refined


def _propose(unit: Array, along: Array, most: Array, solver: str) -> Array:
    """Return a solver's own multipliers [K]; NaN if it has none."""
    if not is_convex(unit):
        return np.full(len(along), np.nan)
    return np.zeros(len(along)) if solver == "active_set" else _qpsolvers(unit, along, most, solver)


def _qpsolvers(unit: Array, along: Array, most: Array, solver: str) -> Array:
    import qpsolvers

    problem = qpsolvers.Problem(unit, along, lb=np.zeros(len(along)), ub=most)
    return propose(problem, solver, **(PRECISE if solver == "osqp" else {}))
