"""Aggregation as published, against independent computations."""

import numpy as np
import pytest

from marble_cli.benchmark.score import aggregate
from marble_cli.config.benchmark import Average
from marble_cli.evaluate.statistics import paired_interval

TAGS = {
    "single_object": 80,
    "two_object": 99,
    "counting": 80,
    "colors": 94,
    "position": 100,
    "color_attr": 100,
}


def test_geneval_is_the_mean_over_tasks_of_the_share_of_right_images() -> None:
    """Against the published summary: per task the mean over its images, then the mean over tasks."""
    draw = np.random.default_rng(0)
    groups = [tag for tag, count in TAGS.items() for _ in range(count)]
    chances = dict(zip(TAGS, (0.98, 0.74, 0.39, 0.85, 0.15, 0.23), strict=True))
    values = [[float(draw.random() < chances[tag]) for _ in range(4)] for tag in groups]
    score = aggregate(values, groups, Average.groups)
    by_task = {
        tag: sum(sum(row) for row, own in zip(values, groups, strict=True) if own == tag) / (4 * count)
        for tag, count in TAGS.items()
    }
    assert score.n == 4 * 553
    assert {tag: part.score for tag, part in score.groups.items()} == pytest.approx(by_task)
    assert score.score == pytest.approx(sum(by_task.values()) / 6)
    assert score.score != pytest.approx(np.mean(values), abs=1e-3)
    assert score.low is not None
    assert score.high is not None
    assert score.low < score.score < score.high
    errors = [
        np.std([np.mean(row) for row, own in zip(values, groups, strict=True) if own == tag]) for tag in TAGS
    ]
    variance = sum((error / count**0.5) ** 2 for error, count in zip(errors, TAGS.values(), strict=True)) / 36
    assert (score.high - score.low) / 2 == pytest.approx(1.96 * variance**0.5, rel=0.1)


def test_a_mean_over_images_is_in_the_published_unit() -> None:
    score = aggregate([[0.25, 0.35], [0.1, None], [None, None]], ["a", "a", "a"], Average.images, 100)
    assert (score.n, score.score) == (3, pytest.approx(70 / 3))
    assert (score.low, score.high) == pytest.approx((10.0, 30.0))
    assert score.groups == {}


def test_a_reward_without_a_score_has_no_mean() -> None:
    assert aggregate([[None]], ["a"], Average.groups).score is None


def test_images_of_a_prompt_are_resampled_together() -> None:
    """With one prompt there is nothing to resample, however many images it has."""
    score = aggregate([[0.0, 1.0, 1.0, 0.0]], ["a"], Average.images)
    assert (score.score, score.low, score.high) == (0.5, 0.5, 0.5)


def test_each_group_keeps_its_number_of_prompts() -> None:
    """Groups that are constant have a certain mean, even if they differ and are of uneven size."""
    values, groups = [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]], ["a", "b", "b"]
    score = aggregate(values, groups, Average.groups)
    assert (score.score, score.low, score.high) == (0.5, 0.5, 0.5)
    plain = aggregate(values, groups, Average.images)
    assert plain.low is not None
    assert plain.high is not None
    assert plain.low < plain.high


def test_one_group_has_the_interval_of_the_plain_mean() -> None:
    values = np.random.default_rng(1).normal(size=(9, 3))
    score = aggregate(values.tolist(), ["a"] * 9, Average.groups)
    assert (score.low, score.high) == paired_interval(values.flatten(), np.repeat(np.arange(9), 3))


def test_with_one_image_per_prompt_intervals_are_those_of_single_images() -> None:
    """Bit by bit as before there were groups: seeded draws of images, a thousand at a time."""
    values = np.random.default_rng(2).normal(size=17)
    random, means = np.random.default_rng(0), []
    for _ in range(10):
        means.append(values[random.integers(0, 17, (1000, 17))].sum(axis=1) / 17)
    expected = tuple(float(part) for part in np.quantile(np.concatenate(means), [0.025, 0.975]))
    assert (
        paired_interval(values)
        == paired_interval(values, np.arange(17))
        == pytest.approx(expected, abs=1e-15)
    )
