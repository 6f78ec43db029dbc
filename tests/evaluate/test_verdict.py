"""Evaluations inside a run: gains in units of the start's deviation, and signs of reward hacking."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from marble_cli.data.prompts import Prompt
from marble_cli.evaluate.score import Evaluation
from marble_cli.evaluate.verdict import base_scores, judge
from marble_cli.rewards.scorer import Scores

NAMES = ["trained", "partial", "watched"]
DRAW = torch.Generator().manual_seed(0)
START = torch.randn(3, 60, generator=DRAW, dtype=torch.float64) * torch.tensor([[1.0], [10.0], [0.1]])
START[1, 20:] = torch.nan


def evaluation(values: Tensor, names: list[str] = NAMES) -> Evaluation:
    applicable = ~values.isnan()
    scores = Scores(names, values, applicable, torch.zeros_like(applicable))
    images = torch.zeros(values.shape[1], 3, 2, 2, dtype=torch.uint8)
    return Evaluation([Prompt(str(i)) for i in range(values.shape[1])], images, scores)


def shifted(*by: float, noise: float = 0.0) -> Evaluation:
    move = torch.tensor(by, dtype=torch.float64)[:, None]
    return evaluation(START + move * (1 + noise * torch.randn(3, 60, generator=DRAW, dtype=torch.float64)))


def verdict(now: Evaluation):  # type: ignore[no-untyped-def]
    return judge(now, base_scores(evaluation(START)), ["trained", "partial"], ["watched"])


def test_base_scores_are_plain_numbers_or_none() -> None:
    kept = base_scores(evaluation(START))
    assert kept["trained"] == START[0].tolist()
    assert kept["partial"] == [*START[1, :20].tolist(), *[None] * 40]


def test_the_composite_is_the_mean_gain_in_deviations_of_the_start() -> None:
    result = verdict(shifted(0.5, 2.0, 7.0))
    deviation = [START[0].std(correction=0).item(), START[1, :20].std(correction=0).item()]
    assert result.composite == pytest.approx((0.5 / deviation[0] + 2.0 / deviation[1]) / 2)
    assert result.metrics["eval/composite"] == result.composite
    assert result.metrics["reward/trained/gain"] == pytest.approx(0.5 / deviation[0])
    assert result.metrics["reward/partial/applicable"] == 20
    assert result.metrics["reward/partial/mean"] == pytest.approx(START[1, :20].mean().item() + 2.0)
    assert result.metrics["reward/watched/std"] == pytest.approx(START[2].std(correction=0).item())
    assert result.hacking is None


def test_each_reward_s_change_has_its_paired_interval() -> None:
    metrics = verdict(shifted(0.5, 2.0, -0.05, noise=0.2)).metrics
    for name, change in (("trained", 0.5), ("partial", 2.0), ("watched", -0.05)):
        low, high = metrics[f"reward/{name}/change_low"], metrics[f"reward/{name}/change_high"]
        assert low < metrics[f"reward/{name}/change"] < high
        assert metrics[f"reward/{name}/change_p"] == pytest.approx(2e-4)  # all of 10,000 signs
        assert metrics[f"reward/{name}/change"] == pytest.approx(change, rel=0.2)
        assert high - low == pytest.approx(
            2 * 1.96 * 0.2 * abs(change) / (60 if name != "partial" else 20) ** 0.5, rel=0.4
        )


@pytest.mark.parametrize("scale", [1e-12, 1.0])
def test_a_reward_that_is_equal_at_the_start_does_not_outweigh_the_others(scale: float) -> None:
    """A coarse one that no image meets at first: its unit is that of both evaluations."""
    start = torch.stack([START[0] * scale, torch.full((60,), 0.1 * scale, dtype=torch.float64)])
    now = start.clone()
    now[1, :3] += scale
    before, names = base_scores(evaluation(start, ["fine", "coarse"])), ["fine", "coarse"]
    p = 3 / 120  # share of the raised among all scores
    expected = 2 * p / (p * (1 - p)) ** 0.5 / 2
    assert judge(evaluation(now, names), before, names, []).composite == pytest.approx(expected)
    assert judge(evaluation(start, names), before, names, []).composite == 0.0
    raised = judge(evaluation(start + scale * START[0].std(correction=0), names), before, ["fine"], [])
    assert raised.composite == pytest.approx(1.0)
    start[1, 0] = float(
        np.nextafter(np.float32(0.1 * scale), np.float32(1))
    )  # rounding, as of a model in float32
    rounded = judge(evaluation(now, names), base_scores(evaluation(start, names)), names, [])
    assert rounded.composite == pytest.approx(expected, rel=1e-3)


def test_composite_is_zero_at_the_start() -> None:
    assert verdict(evaluation(START)).composite == 0.0


def test_warns_if_a_watched_reward_falls_while_a_trained_one_rises() -> None:
    """The words name both rewards and by how much they moved."""
    hacking = verdict(shifted(0.5, 0.0, -0.0625)).hacking
    assert hacking is not None
    assert hacking.startswith("watched (-0.0625) fell since the start while trained (+0.5) rose")
    assert "reward hacking" in hacking


@pytest.mark.parametrize("by", [(0.0, 0.0, -0.05), (0.5, 2.0, 0.05), (-0.5, -2.0, -0.05), (0.5, -2.0, 0.0)])
def test_no_warning_unless_a_watched_reward_falls_and_a_trained_one_rises(by: tuple[float, ...]) -> None:
    assert verdict(shifted(*by, noise=0.2)).hacking is None


def test_no_warning_if_the_fall_is_within_its_interval() -> None:
    values = START.clone()
    values[0] += 0.5
    values[2] += 0.2 * torch.randn(60, generator=DRAW, dtype=torch.float64) - 0.01
    assert verdict(evaluation(values)).hacking is None


@pytest.mark.parametrize(("prompts", "sounds"), [(1, False), (2, True)])
def test_no_warning_by_a_reward_of_one_prompt(prompts: int, sounds: bool) -> None:
    """Its interval has no width, so any change would be beyond it."""
    few = START.clone()
    few[2, prompts:] = torch.nan
    now = evaluation(few + torch.tensor([[0.5], [0.0], [-0.05]]))
    for trained, watched in ((["trained"], ["watched"]), (["watched"], ["trained"])):
        start = base_scores(evaluation(few if trained == ["trained"] else 2 * now.scores.values - few))
        assert bool(judge(now, start, trained, watched).hacking) is sounds


def test_the_loss_of_a_guard_counts_and_its_gain_does_not() -> None:
    start, deviation = base_scores(evaluation(START)), START[2].std(correction=0).item()
    for by, loss in ((-0.05, -0.05 / deviation), (0.05, 0.0)):
        now = shifted(0.5, 0.0, by, noise=0.2)
        alone = judge(now, start, ["trained", "partial"], [])
        guarded = judge(now, start, ["trained", "partial"], [], ["watched"])
        assert guarded.composite - alone.composite == pytest.approx(loss / 2, rel=0.2)
        assert bool(guarded.hacking) == (by < 0)
        assert (guarded.metrics["eval/joint_improvement"] == 0.0) == (by < 0)


def test_composite_counts_only_images_scored_in_both_evaluations() -> None:
    values = START + 1.0
    values[0, 1:] = torch.nan
    values[1, 20:] = 1e9
    result = verdict(evaluation(values))
    deviation = START[1, :20].std(correction=0).item()
    assert result.composite == pytest.approx(
        (2.0 + 1.0 / deviation) / 2
    )  # of one image, both scores are the unit


def test_evaluations_on_different_prompts_are_not_compared() -> None:
    fewer = evaluation(START[:, :30] + 1.0)
    for result in (verdict(fewer), judge(evaluation(START), {}, ["trained"], ["watched"])):
        assert math.isnan(result.composite)
        assert not any(key.startswith("eval/") for key in result.metrics), "a missing figure is a missing key"


def test_a_reward_that_scores_nothing_says_so() -> None:
    values = START.clone()
    values[1] = torch.nan
    metrics = verdict(evaluation(values)).metrics
    name = NAMES[1]
    assert {key: metrics[key] for key in metrics if key.startswith(f"reward/{name}/")} == {
        f"reward/{name}/applicable": 0,
        f"reward/{name}/failed": 0,
    }


def test_joint_shares_count_images_over_trained_rewards_alone() -> None:
    """Of four images: better in both, better and worse, worse in its only one, equal."""
    start = torch.tensor([[0, 0, 0, 1], [0, 0, torch.nan, 1], [9, 9, 9, 9]], dtype=torch.float64)
    now = torch.tensor([[1, 1, -1, 1], [1, -1, torch.nan, 1], [0, 0, 0, 0]], dtype=torch.float64)
    metrics = verdict_against(start, now)
    assert (metrics["eval/joint_improvement"], metrics["eval/joint_decline"]) == (0.25, 0.25)


def test_joint_shares_are_missing_if_no_trained_reward_scored() -> None:
    nothing = torch.full((3, 4), torch.nan, dtype=torch.float64)
    assert "eval/joint_improvement" not in verdict_against(nothing, nothing)


def verdict_against(start: Tensor, now: Tensor) -> dict[str, Any]:
    before = base_scores(evaluation(start))
    return judge(evaluation(now), before, ["trained", "partial"], ["watched"]).metrics
