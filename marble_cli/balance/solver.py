"""Least-norm combination of gradients: a solver proposes, an active set polishes, the gap disposes."""

import time
import warnings
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray

from marble_cli.balance.simplex import Array, gap, refine, shift, standard_form
from marble_cli.errors import BalanceError

MAXIMUM_GAP = 1e-10
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


def least_norm(gram: Array, floor: float = 0.0, solver: str = "osqp") -> Optimum:
    """Minimise a^T G a / 2 subject to sum a = 1, a >= floor.

    No state is kept between calls: a warm start would make a resumed run differ in its last digits from one
    that was never interrupted, and a fresh OSQP workspace costs less than a millisecond.

    Args:
        gram: [K, K] float64, positive diagonal; the gap is measured after scaling its largest entry to one.
        floor: least coefficient, K floor <= 1.
        solver: "osqp", "active_set" or a name known to qpsolvers; "active_set" stands in when it fails.

    Returns:
        A solution whose gap is at most 1e-10.

    Raises:
        BalanceError: no solver reached that gap.
    """
    began = time.perf_counter()
    gram = gram / gram.diagonal().max()
    mapping = shift(len(gram), floor)
    points = mapping @ gram @ mapping
    rounding = len(gram) * np.finfo(float).eps * (mapping @ np.abs(gram) @ mapping).diagonal()
    at_origin = points.diagonal() <= rounding
    refused: list[str] = []
    for name in dict.fromkeys((solver, "active_set")):
        alpha = mapping @ _nearest_point((points + points.T) / 2, at_origin, name)
        found = gap(gram, alpha, floor) if np.isfinite(alpha).all() else np.inf
        if found <= MAXIMUM_GAP:
            return Optimum(alpha, found, name, len(refused), time.perf_counter() - began)
        refused.append(f"{name} (gap {found:.1e})")
    raise BalanceError(
        f"balance.solver: {', '.join(refused)} missed the gap of {MAXIMUM_GAP:g} with {len(gram)} rewards;"
        " the matrix may not be one of inner products. Try another solver, or report it with its entries"
    )


def _nearest_point(points: Array, at_origin: NDArray[np.bool_], solver: str) -> Array:
    """Coefficients [K] on the plain simplex, NaN where the solver failed."""
    if at_origin.any():
        # A point at the origin is the nearest; several share, so that none is preferred.
        shared: Array = at_origin / at_origin.sum()
        return shared
    unit, inverse = standard_form(points)
    start = np.maximum(_propose(unit, inverse, solver), 0.0)
    if not np.isfinite(start).all() or not start.any():
        return np.full(len(points), np.nan)
    simplex = inverse * refine(unit, inverse, start)
    nearest: Array = simplex / simplex.sum()
    return nearest


def _propose(unit: Array, inverse: Array, solver: str) -> Array:
    """A solver's own answer to minimise y^T U y / 2, u . y = 1, y >= 0; NaN where it gives none."""
    match solver:
        case "active_set":
            return np.eye(len(unit))[:, inverse.argmax()]
        case "osqp":
            return _osqp(unit, inverse)
        case _:
            return _qpsolvers(unit, inverse, solver)


def _osqp(unit: Array, inverse: Array) -> Array:
    import osqp

    size = len(unit)
    workspace = osqp.OSQP()
    try:
        workspace.setup(
            P=sparse.csc_matrix(np.triu(unit)),
            q=np.zeros(size),
            A=sparse.csc_matrix(np.vstack([inverse, np.eye(size)])),
            l=np.append(1.0, np.zeros(size)),
            u=np.append(1.0, np.full(size, np.inf)),
            eps_abs=1e-9,
            eps_rel=1e-9,
            max_iter=4000,
            polishing=True,
            verbose=False,
        )
        result = workspace.solve(raise_error=False)
    except osqp.OSQPException:
        # Raised where rounding has left the matrix too far from convex.
        return np.full(size, np.nan)
    solved = result.info.status_val == osqp.SolverStatus.OSQP_SOLVED
    return np.asarray(result.x, dtype=np.float64) if solved else np.full(size, np.nan)


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
