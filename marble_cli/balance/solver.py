"""Solve the balance's QP: a solver proposes, an active-set method polishes, the gap certifies.

`least_norm` tries the configured solver and then the active-set method alone. Each proposal goes through
`simplex.refine`, and is accepted only if it is feasible to 1e-12 with a gap of at most 1e-10.
"""

import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from marble_cli.balance.simplex import Array, gap, mapping, refine, standard_form
from marble_cli.balance.workspace import Workspace
from marble_cli.errors import BalanceError

if TYPE_CHECKING:
    import qpsolvers

MAXIMUM_GAP = 1e-10
INFEASIBLE = 1e-12  # error in the sum of the shares or below the floor
OWN = ("osqp", "active_set")


@dataclass(frozen=True)
class Optimum:
    """Certified solution of the QP.

    Attributes:
        alpha: [K] shares.
        gap: certificate of `simplex.gap`.
        solver: name of the solver.
        fallbacks: number of solvers that were refused before.
        seconds: wall time.
    """

    alpha: Array
    gap: float
    solver: str
    fallbacks: int
    seconds: float


def solvers() -> list[str]:
    """List the names that `balance.solver` takes: our two and the solvers that qpsolvers finds."""
    import qpsolvers

    return [*OWN, *(name for name in qpsolvers.available_solvers if name not in OWN)]


def least_norm(
    gram: Array,
    floor: float = 0.0,
    solver: str = "osqp",
    priorities: Array | None = None,
    workspace: Workspace | None = None,
) -> Optimum:
    """Minimise |sum_k z_k p_k|^2 / 2 over z >= 0, sum z = 1, for points p_k = sum_j M_kj g_j of `mapping`.

    Without priorities this is: minimise a^T G a / 2 subject to sum a = 1, a >= floor. With them, the
    direction d has d . p_k >= pi_k |d|^2 for every k, with equality if z_k > 0.

    Args:
        gram: [K, K] float64, positive diagonal. The gap is measured with points of at most unit length.
        floor: smallest share, K floor <= 1.
        solver: "osqp", "active_set" or a name known to qpsolvers; "active_set" replaces a solver that fails.
        priorities: [K] positive; all equal if None.
        workspace: OSQP to reuse; the answer does not depend on it.

    Returns:
        A solution whose shares sum to one and reach the floor to 1e-12, and whose gap is at most 1e-10.

    Raises:
        BalanceError: no solver reached that.
    """
    began = time.perf_counter()
    workspace = workspace or Workspace()
    size = len(gram)
    gram = gram / gram.diagonal().max()
    priorities = np.ones(size) if priorities is None else priorities / priorities.min()
    combinations = mapping(size, floor, priorities)
    points = combinations @ gram @ combinations.T
    points = (points + points.T) / 2
    magnitude = ((combinations @ np.abs(gram)) * combinations).sum(axis=1)
    at_origin = points.diagonal() <= size * np.finfo(float).eps * magnitude
    refused: list[str] = []
    for name in dict.fromkeys((solver, "active_set")):
        nearest = _nearest_point(points, at_origin, name, workspace)
        alpha = nearest @ combinations
        alpha /= alpha.sum()
        measured = gap(points, nearest) if _feasible(alpha, floor) else np.inf
        if measured <= MAXIMUM_GAP:
            return Optimum(alpha, measured, name, len(refused), time.perf_counter() - began)
        refused.append(f"{name} (gap {measured:.1e})")
    raise BalanceError(
        f"balance.solver: {', '.join(refused)} missed the gap of {MAXIMUM_GAP:g} with {size} rewards. "
        "The matrix may not be one of inner products. Try another solver, or report it with its entries"
    )


def _feasible(alpha: Array, floor: float) -> bool:
    """Tell whether shares sum to one and reach the floor to 1e-12; false if one is NaN."""
    return bool(abs(alpha.sum() - 1.0) <= INFEASIBLE and alpha.min() >= floor - INFEASIBLE)


def _nearest_point(points: Array, at_origin: NDArray[np.bool_], solver: str, workspace: Workspace) -> Array:
    """Return coefficients [K] on the simplex; NaN if the solver failed."""
    if at_origin.any():
        # A point at the origin is the nearest. Several of them share equally.
        shared: Array = at_origin / at_origin.sum()
        return shared
    unit, inverse = standard_form(points)
    start = np.maximum(_propose(unit, inverse, solver, workspace), 0.0)
    if not np.isfinite(start).all() or not start.any():
        return np.full(len(points), np.nan)
    simplex = inverse * refine(unit, inverse, start)
    nearest: Array = simplex / simplex.sum()
    return nearest


def _propose(unit: Array, inverse: Array, solver: str, workspace: Workspace) -> Array:
    """Return a solver's own answer to: minimise y^T U y / 2, u . y = 1, y >= 0; NaN if it has none."""
    match solver:
        case "active_set":
            return np.eye(len(unit))[:, inverse.argmax()]
        case "osqp":
            return workspace(unit, inverse)
        case _:
            return _qpsolvers(unit, inverse, solver)


def _qpsolvers(unit: Array, inverse: Array, solver: str) -> Array:
    import qpsolvers

    size = len(unit)
    problem = qpsolvers.Problem(
        unit, np.zeros(size), A=inverse[None, :], b=np.ones(1), lb=np.zeros(size), ub=np.full(size, np.inf)
    )
    return propose(problem, solver)


def propose(problem: "qpsolvers.Problem", solver: str, **settings: Any) -> Array:
    """Return the answer of a solver of qpsolvers to a problem of size K, [K]; NaN if it has none."""
    import qpsolvers

    none = np.full(len(problem.q), np.nan)
    with warnings.catch_warnings():
        # Sparse backends warn that they converted our few dense numbers.
        warnings.simplefilter("ignore")
        try:
            found = qpsolvers.solve_problem(problem, solver=solver, **settings).x
        except (qpsolvers.QPError, ValueError, ArithmeticError, RuntimeError):
            return none
    return none if found is None else np.asarray(found, dtype=np.float64)
