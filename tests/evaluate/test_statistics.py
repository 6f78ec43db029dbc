"""Statistics over images of prompts: against closed forms, published figures and independent computations."""

import itertools

import numpy as np
import pytest
import scipy.stats
import torch

from marble_cli.evaluate.diversity import diversities
from marble_cli.evaluate.statistics import holm, paired_interval, sign_flip_p_value, win_rate


def test_holm_gives_the_published_example() -> None:
    """Of p-values 0.01, 0.04, 0.03 and 0.005, the fourth and the first are rejected at 5 %."""
    corrected = holm([0.01, 0.04, 0.03, 0.005])
    assert corrected == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.04]) == [0.04]
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_sign_flips_of_a_few_prompts_are_counted_exactly() -> None:
    values = np.array([0.3, 0.1, -0.2, 0.5, 0.4])
    sums = [abs(np.dot(signs, values)) for signs in itertools.product((-1, 1), repeat=5)]
    assert sign_flip_p_value(values) == pytest.approx(np.mean(np.array(sums) >= abs(values.sum()) - 1e-12))
    assert sign_flip_p_value(np.full(6, 0.1)) == pytest.approx(2 / 2**6)
    assert sign_flip_p_value(np.zeros(9)) == 1.0
    assert sign_flip_p_value(np.array([5.0])) == 1.0


def test_more_images_of_the_same_prompts_are_no_more_evidence() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, size=30)
    prompts = np.repeat(np.arange(30), 4)
    assert paired_interval(np.repeat(values, 4), prompts) == pytest.approx(paired_interval(values), rel=1e-12)
    assert sign_flip_p_value(np.repeat(values, 4), prompts) == pytest.approx(sign_flip_p_value(values))
    low, high = paired_interval(np.repeat(values, 4))
    assert high - low < 0.7 * np.diff(paired_interval(values))[0]


def test_prompts_with_fewer_scored_images_weigh_less() -> None:
    low, high = paired_interval(np.array([1.0, 1.0, 1.0, 4.0]), np.array([0, 0, 0, 9]))
    assert (low, high) == (1.0, 4.0)


def test_ties_are_half_a_win() -> None:
    assert win_rate(np.array([0.5, -1.0, 0.0, 2.0])) == 0.625


def test_diversity_is_the_mean_distance_of_pairs() -> None:
    latents = torch.randn(6, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    latents[3:] = latents[3]
    one, other = diversities(latents, 3).tolist()
    pairs = [(latents[a] - latents[b]).double().square().mean().sqrt() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert one == pytest.approx(float(sum(pairs)) / 3)
    assert other == 0.0


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_is_the_percentile_bootstrap(confidence: float) -> None:
    values = np.random.default_rng(1).exponential(size=40)
    expected = scipy.stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=10_000,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    got = paired_interval(values, confidence=confidence)
    assert got == pytest.approx((expected.low, expected.high), abs=0.03 * values.std())
    assert paired_interval(values, confidence=confidence) == got


def test_many_differences_give_the_normal_interval() -> None:
    values = np.random.default_rng(3).normal(0.2, 1.0, size=4000)
    half = 1.96 * values.std() / 4000**0.5
    assert paired_interval(values) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=half / 10
    )


def test_equal_differences_leave_no_doubt() -> None:
    assert paired_interval(np.full(9, 0.25)) == (0.25, 0.25)
    assert paired_interval(np.array([0.7])) == (0.7, 0.7)


def test_the_interval_covers_as_often_as_it_says() -> None:
    draw = np.random.default_rng(4)
    hits = 0
    for _ in range(200):
        low, high = paired_interval(draw.normal(size=50), resamples=1000)
        hits += low <= 0 <= high
    assert 0.88 < hits / 200 < 0.99
