"""UPGrad: projections against all supports one by one, closed forms, and what is refused."""

import math
from itertools import chain, combinations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor

from marble_cli.balance import build, cone, gram
from marble_cli.balance.upgrad import ProjectedSum
from marble_cli.errors import BalanceError, ConfigError
from tests.balance.properties import assert_active_only, direction
from tests.balance.test_balances import REWARDS, config


def every_projection(gradients: Tensor, vector: Tensor) -> Tensor:
    """Project by trying every set of constraints that may hold with equality; [P] float64."""
    count, best = len(gradients), None
    sets = chain.from_iterable(combinations(range(count), n) for n in range(count + 1))
    for chosen in map(list, sets):
        held = gradients[chosen]
        found = vector - held.T @ torch.linalg.lstsq(held.T, vector[:, None], driver="gelsd").solution[:, 0]
        allowed = (gradients @ found >= -1e-9 * gradients.norm(dim=1)).all()
        if allowed and (best is None or (found - vector).norm() < (best - vector).norm()):
            best = found
    assert best is not None
    return best


def draw(seed: int) -> Tensor:
    """Draw 1 to 5 gradients in 2 to 7 dimensions; of every third draw some lie along others."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(1 + seed % 5, 2 + seed % 6, generator=generator, dtype=torch.float64)
    if seed % 3 == 0 and len(rows) > 2:
        rows[1], rows[2] = -2.0 * rows[0], 3.0 * rows[0] + 0.5 * rows[1]
    return rows


@pytest.mark.parametrize("solver", ["osqp", "active_set"])
def test_the_direction_is_the_mean_of_all_projections(solver: str) -> None:
    for seed in range(60):
        gradients = draw(seed)
        solution = ProjectedSum((1.0,) * len(gradients), solver)(gram(gradients))
        projections = [every_projection(gradients, row) for row in gradients]
        expected = torch.stack(projections).mean(dim=0)
        atol = 1e-8 * gradients.norm(dim=1).max().item()
        torch.testing.assert_close(direction(solution, gradients), expected, rtol=0.0, atol=atol)
        assert 0.0 <= solution.gap <= 1e-10
        assert_active_only(solution)


def test_without_conflict_the_gradients_are_averaged_by_weight() -> None:
    gradients = torch.tensor([[3.0, 0.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 5.0]])
    solution = ProjectedSum((2.0, 1.0, 1.0))(gram(gradients))
    assert solution.weights.tolist() == [0.5, 0.25, 0.25]
    assert (solution.solver, solution.gap) == ("none", 0.0)


def test_two_rewards_in_conflict_give_up_what_they_share() -> None:
    """At 120 degrees each keeps what is across the other: sin 60 of its length."""
    angle = 2 * math.pi / 3
    gradients = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    solution = ProjectedSum((1.0, 1.0))(gram(gradients))
    torch.testing.assert_close(solution.weights, torch.full((2,), 0.75, dtype=torch.float64))
    only = ProjectedSum((1.0, 0.0))(gram(gradients))
    assert (gradients @ direction(only, gradients)).tolist() == pytest.approx([0.75, 0.0], abs=1e-12)


def test_opposite_rewards_stand_still() -> None:
    gradients = torch.tensor([[1.0, 2.0], [-0.5, -1.0]], dtype=torch.float64)
    assert direction(ProjectedSum((1.0, 1.0))(gram(gradients)), gradients).norm() < 1e-9


@pytest.mark.parametrize("solver", ["osqp", "active_set"])
def test_nearly_opposite_rewards_are_projected(solver: str) -> None:
    """Against Lawson and Hanson's method on the vectors themselves, which squares no condition number."""
    random = np.random.default_rng(0)
    for _ in range(5):
        vectors, aside = random.normal(size=(6, 20)), random.normal(size=20)
        vectors[1] = -vectors[0] + 1e-4 * aside
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        projected = [g + unit.T @ nnls(unit.T, -g)[0] for g in vectors]
        solution = ProjectedSum((1.0,) * 6, solver)(torch.from_numpy(vectors @ vectors.T))
        assert solution.gap <= 1e-10
        found = solution.weights.numpy() @ vectors
        assert found == pytest.approx(np.mean(projected, axis=0), abs=1e-6)


def test_scaling_all_gradients_changes_no_weight() -> None:
    for seed in range(10):
        gradients = draw(seed)
        balance = ProjectedSum((1.0,) * len(gradients))
        one, other = balance(gram(gradients)), balance(gram(gradients * 1e-7))
        torch.testing.assert_close(one.weights, other.weights, rtol=1e-6, atol=1e-6)


def test_the_direction_is_that_of_torchjd_up_to_its_regularisation() -> None:
    """It adds 1e-4 to the diagonal."""
    pytest.importorskip("torchjd")
    theirs = build(config("torchjd:UPGrad"), REWARDS, (1.0,) * 3)
    for seed in range(20):
        gradients = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        ours = ProjectedSum((1.0,) * 3)(gram(gradients))
        one, other = direction(ours, gradients), direction(theirs(gram(gradients)), gradients)
        assert (one - other).norm() < 0.01 * one.norm()


def test_a_solver_that_fails_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = draw(4)
    expected = ProjectedSum((1.0,) * 5)(gram(gradients))
    monkeypatch.setattr(cone, "_qpsolvers", lambda unit, along, most, solver: np.full(len(along), np.nan))
    found = ProjectedSum((1.0,) * 5)(gram(gradients))
    assert found.solver == "active_set"
    assert found.fallbacks > 0
    torch.testing.assert_close(found.weights, expected.weights, rtol=0.0, atol=1e-9)


def test_a_matrix_of_no_vectors_is_refused() -> None:
    impossible = torch.tensor([[1.0, -3.0, 1.5], [-3.0, 1.0, -3.0], [1.5, -3.0, 1.0]])
    with pytest.raises(BalanceError, match=r"balance\.solver: osqp.*active_set.*residual of 1e-10"):
        ProjectedSum((1.0,) * 3)(impossible)


def test_weights_and_solver_come_from_the_configuration() -> None:
    assert build(config("upgrad", weights={"ocr": 3.0}), REWARDS, (1.0, 2.0, 0.0)) == ProjectedSum(
        (3.0, 2.0, 0.0)
    )
    with pytest.raises(ConfigError, match=r"balance\.solver.*did you mean 'osqp'"):
        build(config("upgrad", solver="ospq"), REWARDS, (1.0,) * 3)
