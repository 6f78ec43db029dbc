"""A refresh on a share of the micro-batches: the weights and norms of the whole step."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from marble_cli.objective.coefficients import Coefficients, advantage_coefficients, reward_coefficients
from marble_cli.step.batches import chunks, split
from marble_cli.step.gradients import mixture_gradient, reward_gradients
from tests.step.directions import INSIDE, NAMES, DescentMaker, direct, distance, rewards_gradients


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
