"""Images drawn by their signal: known probabilities, and weighed losses whose expectation is that of all.

A systematic draw depends on one number in [0, 1), and changes at the fractional parts of the summed
probabilities alone. So expectations are sums over the intervals between these, without any chance.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from marble_cli.objective.image_weights import ImageWeights, alike, drop
from marble_cli.objective.inclusion import draw_systematically, image_signal, inclusion_probabilities
from tests.objective.example import Step, relative, rows

DEAD = torch.arange(17) >= 14


def every_draw(probabilities: Tensor) -> list[tuple[float, Tensor]]:
    """All draws [n] bool that there are, each with its probability."""
    cuts = torch.cat([torch.tensor([0.0, 1.0]).double(), probabilities.cumsum(0) % 1]).sort().values
    return [
        (float(length), draw_systematically(probabilities, float(start + length / 2)))
        for start, length in zip(cuts, cuts.diff(), strict=False)
        if length > 1e-12
    ]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12), st.integers(0, 3), st.floats(0.05, 1.0))
def test_each_image_is_drawn_with_its_probability(sizes: list[float], empty: int, share: float) -> None:
    count = max(1, round(share * len(sizes)))
    given_sizes = torch.tensor(sizes + [0.0] * empty).double()
    probabilities = inclusion_probabilities(given_sizes, count)
    draws = every_draw(probabilities)
    assert all(int(drawn.sum()) == count for _, drawn in draws)
    mean = sum(length * drawn.double() for length, drawn in draws)
    torch.testing.assert_close(mean, probabilities, rtol=0, atol=1e-10)
    assert (probabilities[given_sizes == 0] == 0).all()
    below = probabilities < 1
    ratio = probabilities[below & (given_sizes > 0)] / given_sizes[below & (given_sizes > 0)]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-9, atol=0)


def probabilities_of(step: Step, weights: ImageWeights, count: int) -> Tensor:
    return inclusion_probabilities(image_signal(step.r, step.applicable, weights.trained), count)


@pytest.mark.parametrize("shared_term", ["inside", "outside"])
@pytest.mark.parametrize("dead", [False, True])
def test_expectation_of_every_term_is_that_of_all_images(step: Step, dead: bool, shared_term: str) -> None:
    """Rewards' losses, the shared one and the KL term, over all draws of six images; dropped ones apart."""
    if dead:
        step = replace(step, advantage=step.advantage.masked_fill(DEAD, 0.0))
    whole = drop(DEAD, step.applicable.any(0)) if dead else alike(17)
    assert whole is not None
    made, probabilities = step.coefficients(shared_term), probabilities_of(step, whole, 6)
    draws = [(length, whole.sampled(drawn, probabilities)) for length, drawn in every_draw(probabilities)]
    assert all(int(weights.trained.sum()) == 6 for _, weights in draws)
    assert len(draws) > 6
    for losses in (made.rewards, made.shared):
        expected = whole.weigh(losses)
        found = [(length, weights.weigh(losses)) for length, weights in draws]
        for half in ("p", "q"):
            mean = sum(length * getattr(one, half) for length, one in found)
            torch.testing.assert_close(mean, getattr(expected, half), rtol=1e-9, atol=1e-11)
    kl = sum(length * weights.kl for length, weights in draws)
    torch.testing.assert_close(kl, whole.kl, rtol=1e-9, atol=0)


def test_expectation_of_the_gradients_is_that_of_all_images(step: Step) -> None:
    """By autograd; a single draw is far from it."""
    made, probabilities = step.coefficients("outside").rewards, probabilities_of(step, alike(17), 6)
    draws = [
        (length, rows(step, alike(17).sampled(drawn, probabilities).weigh(made)))
        for length, drawn in every_draw(probabilities)
    ]
    whole = rows(step, made)
    assert relative(sum(length * gradient for length, gradient in draws), whole) < 1e-9
    assert min(relative(gradient, whole) for _, gradient in draws) > 1e-2


def test_no_other_probabilities_have_less_noise(step: Step) -> None:
    """The summed relative variances of independent draws, for all rewards and the shared term."""
    made = step.coefficients("outside").rewards.p[[0, 1, 2, 4]]
    terms = torch.cat([made, torch.ones(1, 17).double()]).square()
    squares = (terms / terms.sum(1, keepdim=True)).sum(0)

    def noise(probabilities: Tensor) -> float:
        return (squares * (1 / probabilities - 1)).sum().item()

    best, draw = noise(probabilities_of(step, alike(17), 6)), torch.Generator().manual_seed(0)
    others = [torch.ones(17), *(torch.rand(17, generator=draw) + 0.1 for _ in range(20))]
    assert all(best < noise(inclusion_probabilities(other.double(), 6)) for other in others)


def test_each_reward_counts_alike_and_no_candidate_is_without_a_chance() -> None:
    r = 0.5 + torch.tensor([[0.4, -0.4, 0, 0, 0], [0, 0, 1e-4, -1e-4, 0]], dtype=torch.float64)
    everywhere, candidates = torch.ones(2, 5, dtype=torch.bool), torch.tensor([True] * 5)
    sizes = image_signal(r, everywhere, candidates)
    torch.testing.assert_close(sizes[:4], torch.full((4,), 0.7**0.5).double(), rtol=1e-9, atol=0)
    assert sizes[4].item() == pytest.approx(0.2**0.5)
    candidates[0] = False
    assert image_signal(r, everywhere, candidates)[0] == 0
