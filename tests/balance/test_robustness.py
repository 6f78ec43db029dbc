"""Hard QPs: points that nearly coincide, lie in few dimensions or surround the origin."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings

from marble_cli.balance import gram
from marble_cli.balance.marble import LeastNorm
from marble_cli.balance.simplex import gap, refine, standard_form, violation
from marble_cli.balance.solver import least_norm
from marble_cli.errors import BalanceError

KINDS = ["noise", "cone", "clusters", "axis", "balanced", "surrounded", "single precision"]


def points(seed: int, size: int, dimensions: int, kind: str) -> np.ndarray:
    """[K, P] points with the named difficulty."""
    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape)

    small = 10.0 ** -generator.integers(1, 16)
    match kind:
        case "noise":  # three dimensions, and far smaller ones beside them
            return np.hstack([normal(size, 3), small * normal(size, dimensions)])
        case "cone":
            return normal(1, dimensions) + small * normal(size, dimensions)
        case "clusters":
            centres = normal(max(1, size // 4), dimensions)
            return centres[generator.integers(len(centres), size=size)] + small * normal(size, dimensions)
        case "axis":
            return normal(1, dimensions) * generator.choice([-1, 1], (size, 1)) + small * normal(
                size, dimensions
            )
        case "balanced" | "surrounded":  # the origin lies just outside the hull, or inside
            cloud = normal(size, dimensions)
            centre = cloud.mean(0) if size > 1 else 0.0
            return cloud - centre + (small * normal(1, dimensions) if kind == "balanced" else 0.0)
        case _:
            return (
                (normal(1, dimensions) + 1e-3 * normal(size, dimensions))
                .astype(np.float32)
                .astype(np.float64)
            )


def inner(rows: np.ndarray, unit: bool) -> np.ndarray:
    matrix = rows @ rows.T
    if unit:
        norms = np.sqrt(matrix.diagonal())
        matrix = matrix / norms[:, None] / norms
    return (matrix + matrix.T) / 2


@given(
    seed=st.integers(0, 2**31),
    size=st.integers(1, 40),
    dimensions=st.sampled_from([2, 3, 30]),
    kind=st.sampled_from(KINDS),
    unit=st.booleans(),
    floor=st.sampled_from([0.0, 0.3, 1.0]),
    spread=st.sampled_from([0.0, 0.5, 3.0]),
)
@example(seed=3610, size=26, dimensions=3, kind="axis", unit=False, floor=1.0, spread=0.5)
@settings(max_examples=300, deadline=None)
def test_no_gram_matrix_is_too_hard(
    seed: int, size: int, dimensions: int, kind: str, unit: bool, floor: float, spread: float
) -> None:
    """Feasible, with a gap of rounding's size, and OSQP's proposal is never refused."""
    matrix = inner(points(seed, size, dimensions, kind), unit)
    priorities = 10.0 ** np.random.default_rng(seed).uniform(-spread, spread, size)
    optimum = least_norm(matrix, floor / size, priorities=priorities)
    assert optimum.gap <= 1e-13
    assert optimum.fallbacks == 0
    assert abs(optimum.alpha.sum() - 1.0) <= 1e-12
    assert optimum.alpha.min() >= floor / size - 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", ["osqp", "active_set"])
def test_many_rewards_in_few_dimensions(kind: str, solver: str) -> None:
    for seed in range(3):
        for dimensions in (2, 3):
            assert least_norm(inner(points(seed, 128, dimensions, kind), True), 0.0, solver).gap <= 1e-13


@given(seed=st.integers(0, 2**31), size=st.integers(2, 30), kind=st.sampled_from(KINDS))
@settings(max_examples=60, deadline=None)
def test_a_poor_start_reaches_the_optimum(seed: int, size: int, kind: str) -> None:
    """The active set is exact on its own, so it can mend whatever a solver proposes."""
    unit, inverse = standard_form(inner(points(seed, size, 3, kind), False))
    y = refine(unit, inverse, np.random.default_rng(seed).random(size))
    assert y.min() >= 0.0
    assert inverse @ y == pytest.approx(1.0, abs=1e-12)
    assert violation(unit, inverse, y)[0] <= 1e-13


@given(
    seed=st.integers(0, 2**31), size=st.integers(1, 12), kind=st.sampled_from(KINDS), moved=st.integers(1, 12)
)
@settings(max_examples=100, deadline=None)
def test_the_direction_is_continuous(seed: int, size: int, kind: str, moved: int) -> None:
    """Moving unit gradients by at most h moves the direction by at most h + sqrt(8 h max(|d|, h)).

    It is the hull's nearest point to the origin. With c' the image of d in the moved hull, |c' - d| <= h and
    |(d' + c') / 2| >= |d'|, so the parallelogram law gives |d' - c'|^2 <= 2 |c'|^2 - 2 |d'|^2, where
    |c'| <= |d| + h and |d'| >= |d| - h. The shares have no such bound: between twins they may jump.
    """
    rows = points(seed, size, 5, kind)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    other = rows + 10.0**-moved * np.random.default_rng(seed).standard_normal(rows.shape)
    other = other / np.linalg.norm(other, axis=1, keepdims=True)
    h = np.linalg.norm(rows - other, axis=1).max()
    d = LeastNorm()(gram(torch.from_numpy(rows))).alpha.numpy() @ rows
    changed = LeastNorm()(gram(torch.from_numpy(other))).alpha.numpy() @ other
    assert np.linalg.norm(d - changed) <= h + np.sqrt(8 * h * max(np.linalg.norm(d), h)) + 1e-6


@pytest.mark.parametrize("solver", ["osqp", "active_set"])
def test_entries_that_are_not_numbers_are_refused(solver: str) -> None:
    matrix = np.eye(3)
    matrix[0, 1] = matrix[1, 0] = np.nan
    with pytest.raises(BalanceError, match="gap"):
        least_norm(matrix, solver=solver)


def test_a_negative_square_is_a_gap() -> None:
    assert gap(np.array([[1.0, -3.0], [-3.0, 1.0]]), np.array([0.5, 0.5])) == pytest.approx(1.0)
