"""Solve the balance's QP with OSQP, whose memory is kept from one step to the next.

OSQP proposes, `simplex.refine` polishes and `simplex.gap` certifies (`solver`), so this module owes two
things only: an answer that depends on the problem alone, and no answer where the problem is not convex.
Public calls of OSQP give the first. They hide the second, because `update` drops the code by which OSQP
refuses a matrix and `solve` then works on whatever was factored before. So `is_convex` decides that here,
before OSQP is asked.
"""

from typing import Any

import numpy as np
from scipy import sparse

from marble_cli.balance.simplex import Array

RHO = 0.1  # OSQP's first step size
SIGMA = 1e-6  # OSQP adds this to the diagonal of U
ROUNDING = 1e-4  # how far below 0 rounding may take an eigenvalue of U, if points almost cancel


class Workspace:
    """Keep one OSQP per number of points, and write new numbers into it for each problem.

    An answer depends on its problem alone, to the last bit. Four things ensure that: every number of the
    problem is written again, iterates start at zero (`warm_starting`), the step size that OSQP adapts is set
    back to `RHO`, and OSQP's own rescaling, which is undone and redone with rounding, is off. `standard_form`
    has done its work.
    """

    def __init__(self) -> None:
        self._solvers: dict[int, Any] = {}

    def __call__(self, unit: Array, inverse: Array) -> Array:
        """Minimise y^T U y / 2 subject to u . y = 1, y >= 0.

        Args:
            unit: U, [K, K] symmetric with a unit diagonal.
            inverse: u, [K].

        Returns:
            [K] float64, to about 1e-9 unless iterations ran out; NaN if U is not convex or OSQP found no
            answer.
        """
        size = len(unit)
        if not is_convex(unit):
            return np.full(size, np.nan)
        solver = self._solvers.get(size)
        if solver is None:
            solver = self._solvers[size] = _set_up(size)
        solver.update_settings(rho=RHO)
        # OSQP wants the upper triangle column by column; by symmetry that is the lower triangle row by row.
        solver.update(Px=unit[np.tri(size, dtype=bool)], Ax=np.column_stack([inverse, np.ones(size)]).ravel())
        # A copy, because OSQP writes its next answer into the same memory.
        return np.array(solver.solve(raise_error=False).x, dtype=np.float64)


def is_convex(unit: Array) -> bool:
    """Tell whether U [K, K] with a unit diagonal is finite and, up to `ROUNDING`, positive semidefinite.

    OSQP starts with the factors of U + (`SIGMA` + `RHO`) I plus a square, so it takes each that passes.
    Inner products pass: points of a length near 0 carry the rounding of longer ones, which the unit diagonal
    magnifies (1e-5 was seen with 26 points).
    """
    if not np.isfinite(unit).all():
        return False
    try:
        np.linalg.cholesky(unit + ROUNDING * np.eye(len(unit)))
    except np.linalg.LinAlgError:
        return False
    return True


def _set_up(size: int) -> Any:
    """Make an OSQP with room for a dense U and u; its numbers are placeholders."""
    import osqp

    solver = osqp.OSQP(algebra="builtin")  # other algebras that are installed may round differently
    solver.setup(
        P=sparse.csc_matrix(np.triu(np.ones((size, size)))),
        q=np.zeros(size),
        A=sparse.csc_matrix(np.vstack([np.ones(size), np.eye(size)])),
        l=np.append(1.0, np.zeros(size)),
        u=np.append(1.0, np.full(size, np.inf)),
        rho=RHO,
        sigma=SIGMA,
        adaptive_rho_tolerance=2.0,  # the default of 5 waits too long with many points
        scaling=0,
        warm_starting=False,
        eps_abs=1e-9,
        eps_rel=1e-9,
        max_iter=1000,
        polishing=True,
        polish_refine_iter=10,
        verbose=False,
    )
    return solver
