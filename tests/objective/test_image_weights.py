"""Images left out of training: what their absence changes in a step's gradients, and what not."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from marble_cli.config.enums import SharedTerm
from marble_cli.objective.coefficients import Coefficients, RewardCoefficients, reward_coefficients
from marble_cli.objective.image_weights import drop
from tests.objective.example import Step, relative, rows

DEAD = torch.arange(17) >= 9  # the last two of four groups


@pytest.fixture
def dead(step: Step) -> Step:
    """The example, its last two groups without signal; nobody scored the image 3, which stays."""
    applicable = step.applicable.clone()
    applicable[:, 3] = False
    return replace(step, advantage=step.advantage.masked_fill(DEAD, 0.0), applicable=applicable)


def dropped(
    step: Step, shared_term: str = "outside"
) -> tuple[RewardCoefficients, Coefficients, Coefficients]:
    """The coefficients of all images; those of the rewards and of the shared term without dead groups."""
    made = step.coefficients(shared_term)
    weights = drop(DEAD, step.applicable.any(0))
    assert weights is not None
    assert torch.equal(weights.trained, ~DEAD)
    return made, weights.weigh(made.rewards), weights.weigh(made.shared)


def test_dropping_changes_no_gradient_of_a_reward(dead: Step) -> None:
    """Bit by bit, as their coefficients stay: with the shared term outside they are zero for dead groups."""
    made, rewards, _ = dropped(dead)
    assert torch.equal(rewards.p, made.rewards.p)
    assert torch.equal(rewards.q, made.rewards.q)
    assert made.rewards.p.any()


def test_shared_term_becomes_the_mean_over_the_scored_images_left(dead: Step) -> None:
    made, _, shared = dropped(dead)
    scored = dead.applicable.any(0)
    assert not scored[3]
    left = (scored & ~DEAD).double()
    mean = left * 17 / left.sum() / 2  # of a loss that is divided by n = 17
    assert torch.equal(shared.p, shared.q)
    torch.testing.assert_close(shared.p, mean, rtol=1e-15, atol=0)
    assert shared.p.sum().item() == pytest.approx(made.shared.p.sum().item())


def test_inside_only_the_shared_part_of_a_gradient_changes(dead: Step) -> None:
    _, rewards, _ = dropped(dead, "inside")
    outside = rows(dead, dead.coefficients("outside").rewards)
    scored, counts = dead.applicable.any(0), dead.applicable.double().sum(1)
    ratio = int(scored.sum()) / int((scored & ~DEAD).sum())
    halves = (dead.applicable & ~DEAD).double() * (17 * ratio / counts.clamp(min=1))[:, None] / 2
    assert relative(rows(dead, rewards), outside + rows(dead, Coefficients(halves, halves))) < 1e-13


def test_kl_term_becomes_the_mean_over_the_images_left(dead: Step) -> None:
    weights = drop(DEAD, dead.applicable.any(0))
    assert weights is not None
    torch.testing.assert_close(weights.kl, (~DEAD).double() * 17 / 9, rtol=1e-15, atol=0)


@pytest.mark.parametrize("shared_term", ["inside", "outside"])
def test_weighing_and_mixing_commute(dead: Step, shared_term: str) -> None:
    """So the one backward pass of an amortised step stays exactly the weighed sum of the rewards' own."""
    made, rewards, shared = dropped(dead, shared_term)
    mix = torch.tensor([0.3, 1.7, 0.02, 5.0, 0.9], dtype=torch.float64)
    weights = drop(DEAD, dead.applicable.any(0))
    assert weights is not None
    one, other = weights.weigh(made.combined(mix)), RewardCoefficients(rewards, shared).combined(mix)
    torch.testing.assert_close(one.p, other.p, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(one.q, other.q, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("dead", [torch.zeros(17), torch.ones(17)], ids=["none", "all"])
def test_nothing_is_dropped_if_nothing_or_everything_is_dead(dead: Tensor) -> None:
    assert drop(dead.bool(), torch.ones(17, dtype=torch.bool)) is None


def test_coefficients_of_the_other_term_are_kept_apart() -> None:
    r, everywhere = torch.tensor([[0.9, 0.1, 0.5, 0.5]]).double(), torch.ones(1, 4, dtype=torch.bool)
    weights = drop(torch.tensor([False, False, True, True]), everywhere[0])
    assert weights is not None
    found = weights.weigh(reward_coefficients(r, everywhere, shared_term=SharedTerm.inside).rewards)
    torch.testing.assert_close(found.p, torch.tensor([[1.4, 0.6, 0.0, 0.0]]).double())
    torch.testing.assert_close(found.q, torch.tensor([[0.6, 1.4, 0.0, 0.0]]).double())
