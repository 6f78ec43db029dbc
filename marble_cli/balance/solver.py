"""Least-norm combination of gradients: a solver proposes, an active set polishes, the gap disposes."""

import time
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from marble_cli.balance.simplex import Array, gap, mapping, refine, standard_form
from marble_cli.balance.workspace import Workspace
from marble_cli.errors import BalanceError

MAXIMUM_GAP = 1e-10
INFEASIBLE = 1e-12
OWN = ("osqp", "active_set")


@dataclass(frozen=True)
class Optimum:
    """A certified solution: `alpha` [K], its `gap`, who found it, refused ones before it, wall `seconds`."""

    alpha: Array
    gap: float
    solver: str
    fallbacks: int
    seconds: float


def solvers() -> list[str]:
    """Names that `balance.solver` takes: our two, and every solver that qpsolvers finds installed."""
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

    Without priorities this is: minimise a^T G a / 2 subject to sum a = 1, a >= floor. With them, the direction d
    has d . p_k >= pi_k |d|^2 for every k, with equality where z_k > 0.

    Args:
        gram: [K, K] float64, positive diagonal; the gap is measured after scaling the points to at most unit length.
        floor: least share, K floor <= 1.
        solver: "osqp", "active_set" or a name known to qpsolvers; "active_set" stands in when it fails.
        priorities: [K] positive; all equal if None.
        workspace: memory to reuse; the answer does not depend on it.

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
        found = gap(points, nearest) if _feasible(alpha, floor) else np.inf
        if found <= MAXIMUM_GAP:
            return Optimum(alpha, found, name, len(refused), time.perf_counter() - began)
        refused.append(f"{name} (gap {found:.1e})")
    raise BalanceError(
        f"balance.solver: {', '.join(refused)} missed the gap of {MAXIMUM_GAP:g} with {size} rewards;"
        " the matrix may not be one of inner products. Try another solver, or report it with its entries"
    )


def _feasible(alpha: Array, floor: float) -> bool:
    """To 1e-12; false where a coefficient is NaN."""
    return bool(abs(alpha.sum() - 1.0) <= INFEASIBLE and alpha.min() >= floor - INFEASIBLE)


def _nearest_point(points: Array, at_origin: NDArray[np.bool_], solver: str, workspace: Workspace) -> Array:
    """Coefficients [K] on the plain simplex, NaN where the solver failed."""
    if at_origin.any():
        # A point at the origin is the nearest; several share, so that none is preferred.
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
    """A solver's own answer to minimise y^T U y / 2, u . y = 1, y >= 0; NaN where it gives none."""
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
    with warnings.catch_warnings():
        # Sparse backends warn that our few dense numbers were converted for them.
        warnings.simplefilter("ignore")
        try:
            solution = qpsolvers.solve_problem(problem, solver=solver)
        except (qpsolvers.QPError, ValueError, ArithmeticError):
            return np.full(size, np.nan)
    return np.full(size, np.nan) if solution.x is None else np.asarray(solution.x, dtype=np.float64)
