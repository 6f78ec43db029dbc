"""A refresh on a share of the micro-batches: the weights and norms of the whole step."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from marble_cli.balance import gram
from marble_cli.balance.constant import Fixed
from marble_cli.balance.guards import Guarded, Guards
from marble_cli.objective.advantages import advantage_sum, optimality
from marble_cli.objective.coefficients import Coefficients, advantage_coefficients, reward_coefficients
from marble_cli.step.batches import chunks, split
from marble_cli.step.gradients import mixture_gradient, reward_gradients
from tests.step.directions import (
    INSIDE,
    NAMES,
    DescentMaker,
    direct,
    distance,
    only_lora,
    rewards_gradients,
)

SHARE = ("balance.refresh_fraction=0.4", "balance.mode=full")  # of the images 1, 4, 7 and 10
GUARD = ("rewards.third.role=guard", "rewards.third.margin=0.99")


@pytest.mark.parametrize(("fraction", "shared_term"), [(0.01, "outside"), (0.5, "inside"), (0.8, "outside")])
def test_a_share_of_the_micro_batches_chooses_the_weights_of_all(
    descent: DescentMaker, case: Any, reference: Any, fraction: float, shared_term: str
) -> None:
    overrides = (f"balance.refresh_fraction={fraction}", f"balance.shared_term={shared_term}")
    direction = direct(descent("balance.mode=full", *overrides), case)
    weights = [direction.metrics.get(f"balance/weight/{name}", 0.0) for name in NAMES]
    outside = shared_term == "outside"
    expected = torch.tensor(weights, dtype=torch.float64) @ rewards_gradients(
        case, reference, outside=outside
    )
    if outside:
        expected = expected + reference.shared(case.signal.applicable.any(0))
    assert distance(direction.gradient, expected + reference.kl) < 1e-9
    whole = direct(descent("balance.mode=full", f"balance.shared_term={shared_term}"), case)
    assert distance(direction.gradient, whole.gradient) > 1e-3


def test_a_share_that_would_miss_a_reward_is_widened(descent: DescentMaker, case: Any) -> None:
    """The one image of the one chosen micro-batch does not have the fourth reward."""
    applicable = case.signal.applicable.clone()
    applicable[3, 0] = False
    signal = replace(case.signal, applicable=applicable)
    settings = ("balance.mode=full", "trainer.micro_batch_size=1", "balance.refresh_fraction=0.01")
    shared = direct(descent(*settings), case, signal=signal)
    whole = direct(descent("balance.mode=full", "trainer.micro_batch_size=1"), case, signal=signal)
    assert distance(shared.gradient, whole.gradient) < 1e-12
    assert shared.metrics["balance/grad_norm/fourth"] > 0


def test_a_share_of_the_micro_batches_stands_for_the_whole_step(
    descent: DescentMaker, double_policy: Any, case: Any
) -> None:
    """Norms from half of the samples are scaled up to the step's, by each reward's applicable samples."""
    made = descent("balance.mode=full", "balance.refresh_fraction=0.5", "trainer.micro_batch_size=12", INSIDE)
    direction = direct(made, case)
    (chosen,), _ = split(chunks(case.data, 12), 0.5)
    half = replace(case, data=replace(case.data, samples=12))
    rewards = reward_coefficients(case.signal.optimality, case.signal.applicable).rewards
    found = reward_gradients(
        half.step(double_policy), [chosen], rewards, Coefficients(rewards.p[4], rewards.q[4])
    )
    for k, name in enumerate(NAMES):
        assert direction.metrics[f"balance/grad_norm/{name}"] == pytest.approx(found.rows[k].norm().item())


@only_lora
def test_a_sum_is_guarded_as_long_as_in_the_whole_step(
    descent: DescentMaker, double_policy: Any, case: Any
) -> None:
    """The sum is scaled up by its own images; a reward of weight 0 applies to more."""
    words = ("balance=advantage_sum", "rewards.colorfulness.weight=0")
    direction = direct(descent(*words, *GUARD, *SHARE), case)
    signal, (chosen, _) = case.signal, split(chunks(case.data, 5), 0.4)
    mixed, scored = advantage_sum(signal.advantage[[1, 3]], signal.applicable[[1, 3]], torch.ones(2))
    r = torch.cat([signal.optimality[2:3], optimality(mixed, case.objective.clip)])
    applicable = torch.cat([signal.applicable[2:3], scored])
    made = reward_coefficients(r, applicable)
    found = reward_gradients(case.step(double_policy), chosen, made.rewards, made.shared).rows[:2]
    scale = applicable.sum(1) / applicable[:, [1, 4, 7, 10]].sum(1)
    guarded = Guarded(Fixed((1.0,)), Guards((0.99, math.nan)))(gram(found * scale[:, None]))
    assert direction.metrics["balance/weight/third"] == pytest.approx(guarded.weights[0].item())


@only_lora
def test_a_share_that_would_miss_a_sum_is_widened(descent: DescentMaker, case: Any) -> None:
    """Each image of the share lacks a score that others of its prompt have, so the sum leaves it out."""
    applicable = torch.ones_like(case.signal.applicable)
    applicable[0, [1, 7]] = applicable[1, [4, 10]] = False
    rewards = torch.randn(5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    signal = replace(case.signal, applicable=applicable, rewards=rewards)
    words = ("balance=weighted_sum", *GUARD, "balance.mode=full")
    shared, whole = (direct(descent(*words, *more), case, signal=signal) for more in (SHARE, ()))
    assert distance(shared.gradient, whole.gradient) < 1e-12
    assert whole.metrics["balance/weight/third"] > 0


def test_the_published_refresh_takes_the_rest_by_mixed_advantages(
    descent: DescentMaker, double_policy: Any, case: Any
) -> None:
    made = descent("balance.amortize=advantage", "balance.mode=full", "balance.refresh_fraction=0.01", INSIDE)
    direction = direct(made, case)
    chosen, others = split(chunks(case.data, 5), 0.01)
    signal, step = case.signal, case.step(double_policy)
    rewards = reward_coefficients(signal.optimality, signal.applicable).rewards
    nothing = Coefficients(0 * rewards.p[4], 0 * rewards.q[4])
    found = reward_gradients(step, chosen, rewards, nothing).rows
    weights = [direction.metrics.get(f"balance/weight/{name}", 0.0) for name in NAMES]
    mixed = advantage_coefficients(
        direction.cache.alpha, signal.advantage, signal.applicable, case.objective.clip
    )  # type: ignore[arg-type]
    expected = torch.tensor(weights, dtype=torch.float64) @ found[:5] + found[5]
    expected = expected + mixture_gradient(step, others, mixed).rows[0]
    assert distance(direction.gradient, expected) < 1e-10
