"""The warm OSQP: the same bits whatever it solved before, and no answer where there is none."""

import numpy as np
import pytest
import torch

from marble_cli.balance import gram
from marble_cli.balance.marble import LeastNorm
from marble_cli.balance.simplex import standard_form
from marble_cli.balance.workspace import Workspace, is_convex

NO_GRAM = np.array([[1.0, -3.0, 1.5], [-3.0, 1.0, -3.0], [1.5, -3.0, 1.0]])


def problem(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """U and u of 1 to 24 points: any rank, near each other or not, of like or unlike lengths."""
    size = int(generator.integers(1, 25))
    points = generator.standard_normal((size, int(generator.choice([1, 2, 3, size, 60]))))
    points = 10.0 ** -generator.integers(0, 5) * points + generator.standard_normal(points.shape[1])
    if generator.random() < 0.5:
        points *= 10.0 ** generator.uniform(-3, 3, (size, 1))
    return standard_form(points @ points.T)


def test_history_leaves_no_trace() -> None:
    generator, warm = np.random.default_rng(0), Workspace()
    for _ in range(600):
        unit, inverse = problem(generator)
        if generator.random() < 0.05:
            warm(NO_GRAM, np.ones(3))
        np.testing.assert_array_equal(warm(unit, inverse), Workspace()(unit, inverse), strict=True)


def test_a_failure_does_not_show_the_last_answer() -> None:
    workspace = Workspace()
    assert np.isfinite(workspace(np.eye(3), np.ones(3))).all()
    assert np.isnan(workspace(NO_GRAM, np.ones(3))).all()
    assert np.isnan(workspace(np.full((3, 3), np.nan), np.ones(3))).all()
    np.testing.assert_allclose(workspace(np.eye(3), np.ones(3)), 1 / 3, rtol=0.0, atol=1e-12)


def test_inner_products_of_any_rank_are_convex() -> None:
    """Decided before OSQP is asked, whose public `update` does not report that it refused a matrix."""
    generator = np.random.default_rng(0)
    assert all(is_convex(problem(generator)[0]) for _ in range(500))
    assert is_convex(np.ones((64, 64)))
    assert not is_convex(NO_GRAM)
    assert not is_convex(np.full((3, 3), np.nan))


def test_an_answer_is_not_overwritten_by_the_next() -> None:
    workspace = Workspace()
    first = workspace(np.eye(2), np.ones(2))
    workspace(np.array([[1.0, 0.5], [0.5, 4.0]]), np.ones(2))
    np.testing.assert_allclose(first, 0.5)


@pytest.mark.parametrize("unit", [True, False])
def test_a_balance_repeats_itself_as_rewards_come_and_go(unit: bool) -> None:
    """As a run does that was resumed: its balance is new, the other's has seen every step."""
    generator, veteran = torch.Generator().manual_seed(0), LeastNorm(unit, floor=0.01)
    for step in range(200):
        gradients = torch.randn(9, 30, generator=generator, dtype=torch.float64)
        gradients += torch.randn(1, 30, generator=generator, dtype=torch.float64)
        gradients[torch.rand(9, generator=generator) < 0.02 * (step % 20)] = torch.nan
        one, other = veteran(gram(gradients)), LeastNorm(unit, floor=0.01)(gram(gradients))
        assert torch.equal(one.alpha, other.alpha)
        assert torch.equal(one.weights, other.weights)
        assert (one.gap, one.solver, one.fallbacks) == (other.gap, other.solver, other.fallbacks)
