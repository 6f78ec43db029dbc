"""OSQP's memory, kept from one programme to the next so that only numbers change, never their places."""

from typing import Any

import numpy as np
from scipy import sparse

from marble_cli.balance.simplex import Array

RHO = 0.1


class Workspace:
    """One OSQP for each number of points met so far.

    An answer depends on its programme alone, to the last bit, whatever was solved before: every number of the
    programme is written anew, iterates start at zero, the step size `rho`, which OSQP adapts, is set back, and
    OSQP's own rescaling, which would be undone and redone with rounding, is off (`standard_form` has done its
    work). After a failure the OSQP is thrown away.
    """

    def __init__(self) -> None:
        self._kept: dict[int, Any] = {}

    def __call__(self, unit: Array, inverse: Array) -> Array:
        """Minimise y^T U y / 2 subject to u . y = 1, y >= 0.

        Args:
            unit: U, [K, K] symmetric.
            inverse: u, [K].

        Returns:
            [K] float64, to about 1e-9 unless iterations ran out; NaN where OSQP gives no answer.
        """
        size = len(unit)
        solver = self._kept.pop(size, None) or _setup(size)
        # The wrapper's own methods drop the codes of failure that these return, and then show the last answer.
        native = solver._solver
        # Column by column down to the diagonal, which by symmetry is row by row up to it.
        upper = unit[np.tri(size, dtype=bool)]
        equality_and_bounds = np.column_stack([inverse, np.ones(size)]).ravel()
        failed = (
            native.update_rho(RHO)
            or native.update_data_mat(P_x=upper, P_i=None, A_x=equality_and_bounds, A_i=None)
            or native.solve()
        )
        if failed:
            return np.full(size, np.nan)
        self._kept[size] = solver
        return np.array(native.solution.x, dtype=np.float64)


def _setup(size: int) -> Any:
    """An OSQP with room for a dense U and u; its numbers are placeholders."""
    import osqp

    solver = osqp.OSQP(algebra="builtin")  # others that are installed need not repeat their last digits
    solver.setup(
        P=sparse.csc_matrix(np.triu(np.ones((size, size)))),
        q=np.zeros(size),
        A=sparse.csc_matrix(np.vstack([np.ones(size), np.eye(size)])),
        l=np.append(1.0, np.zeros(size)),
        u=np.append(1.0, np.full(size, np.inf)),
        rho=RHO,
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
