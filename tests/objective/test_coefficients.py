"""Mixtures of the rewards' losses: one backward pass gives their balanced sum; the published way does not."""

import pytest
import torch

from marble_cli.config.enums import SharedTerm
from marble_cli.objective.coefficients import (
    Coefficients,
    advantage_coefficients,
    reward_coefficients,
)
from tests.objective.example import CLIP, Step, relative, reward_gradients, rows


@pytest.mark.parametrize("micro_batches", [1, 4, 9])
def test_one_backward_pass_is_the_balanced_direction(step: Step, micro_batches: int) -> None:
    weights = torch.tensor([0.3, 1.7, 0.02, 5.0, 0.9], dtype=torch.float64)
    got = step.gradient(step.coefficients().combined(weights), micro_batches)
    assert relative(got, weights @ reward_gradients(step)) < 1e-13


def test_the_shared_term_is_what_all_rewards_have_in_common(step: Step) -> None:
    everywhere = torch.ones_like(step.applicable)
    inside = reward_coefficients(step.r, everywhere)
    outside = reward_coefficients(step.r, everywhere, shared_term=SharedTerm.outside)
    assert not inside.shared.p.any()
    assert not inside.shared.q.any()
    shared = step.gradient(outside.shared)
    assert relative(rows(step, outside.rewards) + shared, rows(step, inside.rewards)) < 1e-13


def test_the_shared_term_enters_once(step: Step) -> None:
    weights = torch.tensor([0.3, 1.7, 0.02, 5.0, 0.9], dtype=torch.float64)
    made = step.coefficients("outside")
    expected = weights @ reward_gradients(step, "outside") + step.gradient(made.shared)
    assert relative(step.gradient(made.combined(weights), 4), expected) < 1e-13


def test_an_image_that_nobody_scored_moves_nothing(step: Step) -> None:
    applicable = step.applicable.clone()
    applicable[:, 4] = False
    weights = torch.ones(5, dtype=torch.float64)
    for shared_term in ("inside", "outside"):
        made = reward_coefficients(step.r, applicable, shared_term=SharedTerm(shared_term)).combined(weights)
        assert made.p[4] == made.q[4] == 0.0


def test_an_image_that_nobody_scored_is_neither_good_nor_bad_as_published(step: Step) -> None:
    """The r = 1/2: the mean over all images pulls it towards the behaviour policy."""
    applicable = step.applicable.clone()
    applicable[:, 4] = False
    alpha = torch.full((5,), 0.2, dtype=torch.float64)
    found = advantage_coefficients(alpha, step.advantage, applicable, CLIP)
    assert found.p[4] == found.q[4] == 0.5
    images = [i for i in range(applicable.shape[1]) if i != 4]
    everyone = advantage_coefficients(alpha, step.advantage, step.applicable, CLIP)
    assert torch.equal(found.p[images], everyone.p[images])
    assert torch.equal(found.q[images], everyone.q[images])
    lone = torch.zeros_like(found.p)
    lone[4] = 0.5
    without = step.gradient(Coefficients(found.p - lone, found.q - lone))
    torch.testing.assert_close(
        step.gradient(found), without + step.gradient(Coefficients(lone, lone)), rtol=1e-12, atol=1e-14
    )
    assert relative(step.gradient(found), without) > 1e-3


def test_mixing_advantages_is_another_direction(step: Step) -> None:
    """The published amortisation differs from the balanced direction as soon as there are masks."""
    gradients = reward_gradients(step)
    alpha = torch.tensor([0.4, 0.2, 0.2, 0.0, 0.2], dtype=torch.float64)
    published = advantage_coefficients(alpha, step.advantage, step.applicable, CLIP)
    mixed = (alpha[:, None] * step.advantage).sum(0)
    torch.testing.assert_close(published.p, (mixed / (2 * CLIP) + 0.5).clamp(0, 1))
    torch.testing.assert_close(published.p + published.q, torch.ones_like(mixed))
    assert relative(step.gradient(published), alpha @ gradients) > 1e-3


def test_for_one_reward_without_mask_all_ways_agree(step: Step) -> None:
    one = torch.ones(1, dtype=torch.float64)
    r, applicable = step.r[:1], step.applicable[:1]
    made = reward_coefficients(r, applicable)
    for other in (made.combined(one), advantage_coefficients(one, step.advantage[:1], applicable, CLIP)):
        torch.testing.assert_close(other.p, made.rewards.p[0])
        torch.testing.assert_close(other.q, made.rewards.q[0])
