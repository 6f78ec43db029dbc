"""Compare solvers of the balance's QP on random Gram matrices: time and distance from the optimum.

The QP is: minimise a^T G a / 2 over the simplex. The gap a^T G a - min_k (G a)_k of a feasible a is zero at
the optimum only, so no solver serves as the reference of another.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import qpsolvers
import scipy.optimize
import scipy.sparse
import torch
from numpy.typing import NDArray

from marble_cli.balance.marble import LeastNorm
from scripts.bench.report import Cell, Sheet

Array = NDArray[np.float64]
Solver = Callable[[Array], Array]
PRECISE = {"eps_abs": 1e-9, "eps_rel": 1e-9, "polishing": True}


def random_gram(rewards: int, seed: int) -> Array:
    """Draw the inner products [K, K] of K unit vectors that share a direction to varying degrees."""
    random = np.random.default_rng((rewards, seed))
    vectors = random.normal(size=(rewards, 2 * rewards))
    vectors += random.uniform(0.0, 2.0, size=(rewards, 1)) * random.normal(size=2 * rewards)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    product: Array = vectors @ vectors.T
    np.fill_diagonal(product, 1.0)
    return product


def slsqp(gram: Array) -> Array:
    """Solve for shares [K] as the published code does: by SLSQP from equal shares, default tolerance."""
    size = len(gram)
    result = scipy.optimize.minimize(
        lambda a: 0.5 * a @ gram @ a,
        np.full(size, 1.0 / size),
        method="SLSQP",
        jac=lambda a: gram @ a,
        bounds=[(0.0, 1.0)] * size,
        constraints={"type": "eq", "fun": lambda a: a.sum() - 1.0, "jac": np.ones_like},
    )
    return _feasible(result.x)


def marble() -> Solver:
    """Return the balance as the trainer calls it, certificate included; one object serves all steps."""
    balance = LeastNorm()
    return lambda gram: balance(torch.from_numpy(gram)).alpha.numpy()


def through_qpsolvers(name: str, **settings: Any) -> Solver:
    """Return a solver that qpsolvers knows; it is set up for every problem separately."""

    def solve(gram: Array) -> Array:
        size = len(gram)
        form = np.asarray if name in qpsolvers.dense_solvers else scipy.sparse.csc_matrix
        problem = qpsolvers.Problem(
            form(gram),
            np.zeros(size),
            A=form(np.ones((1, size))),
            b=np.ones(1),
            lb=np.zeros(size),
            ub=np.ones(size),
        )
        shares: Any = qpsolvers.solve_problem(problem, solver=name, **settings).x
        return _feasible(shares)

    return solve


def torchjd_weighting(name: str) -> Solver:
    """Return a weighting of torchjd that is given the same float64 Gram matrix.

    Raises:
        ImportError: torchjd, or a package that the weighting needs, is not installed.
    """
    from torchjd import aggregation

    weighting = getattr(aggregation, f"{name}Weighting")()
    return lambda gram: weighting(torch.from_numpy(gram)).numpy()


def all_solvers() -> dict[str, Solver]:
    """Return every installed solver by the name that the table lists."""
    solvers: dict[str, Solver] = {
        "marble: LeastNorm": marble(),
        "scipy: SLSQP, as published": slsqp,
        "OSQP at 1e-9, polished": through_qpsolvers("osqp", **PRECISE),
        "OSQP, default tolerance": through_qpsolvers("osqp"),
    }
    others = [name for name in qpsolvers.available_solvers if name != "osqp"]
    solvers |= {f"qpsolvers: {name}": through_qpsolvers(name) for name in others}
    for name in ("MGDA", "UPGrad"):
        with suppress(ImportError):
            solvers[f"torchjd: {name}"] = torchjd_weighting(name)
    return solvers


def gap(gram: Array, alpha: Array) -> float:
    """Return an upper bound of how far the objective of feasible shares [K] can still fall."""
    slopes = gram @ alpha
    return float(alpha @ slopes - slopes.min())


def compare_solvers(sizes: tuple[int, ...], problems: int) -> Sheet:
    """Measure the median time and the worst gap of every solver on the same random problems, on one thread.

    Args:
        sizes: numbers K of rewards.
        problems: random Gram matrices per size.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: list[tuple[Cell, ...]] = []
    for size in sizes:
        matrices = [random_gram(size, seed) for seed in range(problems)]
        for name, solver in all_solvers().items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                milliseconds, gaps = _measure(solver, matrices)
            # UPGrad solves another QP, for which this gap means nothing.
            worst = None if name.endswith("UPGrad") else max(gaps)
            rows.append((name, float(size), milliseconds, worst))
    torch.set_num_threads(threads)
    absent = [name for name in ("torchjd: MGDA", "torchjd: UPGrad") if name not in all_solvers()]
    left_out = f" Left out, because not installed: {', '.join(absent)}." if absent else ""
    return Sheet(
        "Solvers of the balance's QP",
        f"{problems} random problems per size. The gap is a^T G a - min_k (G a)_k, taken after negative "
        f"shares are set to zero and the rest rescaled. UPGrad solves another QP.{left_out}",
        {"solver": "", "K": ".0f", "median ms": ".3f", "worst gap": ".1e"},
        rows,
    )


def _measure(solver: Solver, matrices: list[Array]) -> tuple[float, list[float]]:
    """Return the median milliseconds and all gaps, after one solution that warms up."""
    solver(matrices[0])
    seconds, gaps = [], []
    for matrix in matrices:
        began = time.perf_counter()
        alpha = solver(matrix)
        seconds.append(time.perf_counter() - began)
        gaps.append(gap(matrix, alpha))
    return 1e3 * statistics.median(seconds), gaps


def _feasible(x: Array) -> Array:
    """Set negative shares to zero and rescale the rest to a sum of one."""
    positive = np.maximum(x, 0.0)
    shares: Array = positive / positive.sum()
    return shares
