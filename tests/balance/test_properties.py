"""The properties that every balance must have, and those that only some have."""

from typing import Any

import pytest
import torch
from torch import Tensor

from marble_cli.balance import Balance, build, gram
from marble_cli.config import schema
from tests.balance.properties import (
    assert_active_only,
    assert_certified,
    assert_non_conflicting,
    assert_permutation_equivariant,
    assert_repeatable,
    assert_scale_invariant,
    assert_shares_sum_to_one,
)

NAMES = ("ocr", "clipscore", "objects", "aesthetic")
LEAST_NORM = ["marble", "mgda", "output_space"]
CONSTANT = ["equal", "fixed"]
TORCHJD = ["UPGrad", "DualProj", "MGDA", "AlignedMTL", "IMTLG", "PCGrad", "GradVac", "PCD"]
OURS = [*LEAST_NORM, *CONSTANT]
EVERY = [*OURS, "upgrad", *(f"torchjd:{name}" for name in TORCHJD)]


def make(name: str, **settings: Any) -> Balance:
    if name.startswith("torchjd:"):
        pytest.importorskip("torchjd")
    defaults: dict[str, Any] = {"solver": "osqp", "floor": 0.0, "norm_priority": 0.0}
    steps = {"ema": 0.7, "refresh_every": 10, "warmup": 1}
    config = schema.BalanceConfig(name=name, **{**defaults, **steps, **settings})
    balance = build(config, NAMES, (2.0, 1.0, 1.0, 3.0))
    assert isinstance(balance, Balance)
    return balance


def draw_gradients(seed: int) -> Tensor:
    """Draw four gradients [4, 20] in float64; two of odd seeds conflict, and one of them is long."""
    rows = torch.randn(4, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if seed % 2:
        rows[1] -= 1.5 * rows[0]
        rows[-1] *= 30.0
    return rows


def leave_out(rows: Tensor, reward: int, value: float) -> Tensor:
    rows = rows.clone()
    rows[reward] = value
    return rows


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_reward_without_a_finite_gradient_has_no_weight(name: str, value: float) -> None:
    for seed in range(4):
        gradients = leave_out(draw_gradients(seed), seed, value)
        solution = make(name)(gram(gradients))
        assert solution.active.tolist() == [k != seed for k in range(4)]
        assert_active_only(solution)


@pytest.mark.parametrize("name", EVERY)
def test_equal_balances_give_equal_bits(name: str) -> None:
    for seed in range(4):
        assert_repeatable(make(name), make(name), draw_gradients(seed))


@pytest.mark.parametrize("name", [*OURS[:-1], "torchjd:UPGrad", "torchjd:MGDA", "torchjd:IMTLG"])
def test_shares_follow_the_order_of_the_rewards(name: str) -> None:
    for seed in range(4):
        order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
        assert_permutation_equivariant(make(name), draw_gradients(seed), order, atol=1e-6)


@pytest.mark.parametrize("name", OURS)
def test_shares_sum_to_one(name: str) -> None:
    for seed in range(4):
        assert_shares_sum_to_one(make(name)(gram(draw_gradients(seed))))


@pytest.mark.parametrize("name", LEAST_NORM)
@pytest.mark.parametrize("floor", [0.0, 0.1, 0.25])
def test_solutions_of_a_qp_are_certified(name: str, floor: float) -> None:
    for seed in range(8):
        assert_certified(make(name, floor=floor)(gram(draw_gradients(seed))), floor)


@pytest.mark.parametrize("name", [*LEAST_NORM, "upgrad"])
def test_solutions_of_a_qp_conflict_with_no_reward(name: str) -> None:
    for seed in range(8):
        gradients = draw_gradients(seed)
        assert_non_conflicting(make(name)(gram(gradients)), gradients)


@pytest.mark.parametrize("name", ["marble", "output_space"])
def test_balances_of_unit_gradients_ignore_their_scale(name: str) -> None:
    for seed in range(8):
        scale = 10.0 ** torch.linspace(-6, 6, 4, dtype=torch.float64)[:, None]
        assert_scale_invariant(make(name), draw_gradients(seed), scale)
