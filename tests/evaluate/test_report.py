"""The report of `marble eval`: what it says of each reward, its JSON, and tables that fit a terminal."""

import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from marble_cli.config.enums import OdeSolver, RolloutTimes
from marble_cli.config.evaluation import EvaluationSettings
from marble_cli.data.prompts import Prompt
from marble_cli.evaluate.compare import Comparison, compare, compare_diversity, compare_jointly
from marble_cli.evaluate.report import EvalReport
from marble_cli.evaluate.score import Evaluation
from marble_cli.evaluate.statistics import holm, sign_flip_p_value
from marble_cli.rewards.scorer import Scores

NAMES = ["compressibility", "clipscore", "ocr", "imagereward_of_another"]
SETTINGS = EvaluationSettings(8, OdeSolver.dpm2, RolloutTimes.solver, 1.0, 64, 48, 2, 400, 0)
PROMPTS, PER_PROMPT = 40, 2


def evaluation(seed: int, shift: tuple[float, ...] = (0.0,) * 4) -> Evaluation:
    """Scores that share their prompts' part; `ocr` applies to every other prompt."""
    shared = np.random.default_rng(0).normal(size=(4, PROMPTS)).repeat(PER_PROMPT, axis=1)
    values = shared + 0.2 * np.random.default_rng(seed).normal(size=shared.shape) + np.array(shift)[:, None]
    values[2, (np.arange(PROMPTS) % 2 == 0).repeat(PER_PROMPT)] = np.nan
    scores = torch.from_numpy(values * np.array([[-99.0], [1.0], [0.1], [1.0]]))
    applicable = ~scores.isnan()
    failed = torch.zeros_like(applicable)
    failed[2, 0] = True
    sources = ("general", "a_source_of_a_long_name", "text")
    return Evaluation(
        [Prompt(str(i), source=sources[i % 3]) for i in range(PROMPTS)],
        torch.zeros(12, 3, 2, 2, dtype=torch.uint8),
        Scores(NAMES, scores, applicable, failed),
        PER_PROMPT,
        torch.from_numpy(np.random.default_rng(seed).uniform(0.5, 1, size=PROMPTS)),
    )


ONE, OTHER = evaluation(1, (0.5, 0.4, -0.9, 0.0)), evaluation(2)


@pytest.fixture(scope="module")
def report() -> EvalReport:
    comparisons = [
        Comparison(
            label, compare(ONE, other), compare_jointly(ONE, other, NAMES[:3]), compare_diversity(ONE, other)
        )
        for label, other in (("base", OTHER), ("runs/[bold]second", ONE))
    ]
    return EvalReport("first/step-00000070", PROMPTS, SETTINGS, compare(ONE, None), None, comparisons)


def test_verdicts_are_corrected_for_the_number_of_rewards(report: EvalReport) -> None:
    results = report.comparisons[0].rewards
    assert [result.verdict for result in results] == ["fell", "rose", "fell", "undecided"]
    plain = []
    for k in range(4):
        difference = (ONE.scores.values[k] - OTHER.scores.values[k]).numpy()
        there = np.isfinite(difference)
        plain.append(sign_flip_p_value(difference[there], ONE.prompt_indices[there]))
    assert [result.p_value for result in results] == holm(plain)
    same = report.comparisons[1].rewards
    assert all((r.verdict, r.win_rate, r.difference) == ("undecided", 0.5, 0.0) for r in same)


def test_a_small_change_is_undecided_among_many_rewards() -> None:
    """With p = 0.03, one reward alone rose; among others that did not change, nobody can tell."""
    assert holm([0.03])[0] <= 0.05 < min(holm([0.03, 0.9, 0.8, 0.7]))


def test_sources_are_told_apart(report: EvalReport) -> None:
    result = report.comparisons[0].rewards[1]
    places = np.array(ONE.sources) == "text"
    difference = (ONE.scores.values[1] - OTHER.scores.values[1]).numpy()[places]
    figures = result.sources["text"]
    assert (figures.n, figures.difference) == (places.sum(), pytest.approx(difference.mean()))
    assert sum(figures.n for figures in result.sources.values()) == result.n == PROMPTS * PER_PROMPT
    ocr = report.comparisons[0].rewards[2]
    assert (ocr.n, ocr.failed) == (PROMPTS, 2)


def test_diversity_is_compared_prompt_by_prompt() -> None:
    figures = compare_diversity(ONE, OTHER)
    assert figures is not None
    assert ONE.diversity is not None
    assert OTHER.diversity is not None
    assert figures.difference == pytest.approx((ONE.diversity - OTHER.diversity).mean().item())
    broken = ONE.diversity.clone()
    broken[1] = float("nan")  # a picture that is not finite
    figures = compare_diversity(replace(ONE, diversity=broken), OTHER)
    assert figures is not None
    assert figures.n == len(broken) - 1
    rest = torch.arange(len(broken)) != 1
    assert figures.difference == pytest.approx((ONE.diversity - OTHER.diversity)[rest].mean().item())
    assert compare_diversity(replace(ONE, diversity=None), OTHER) is None


def test_json_keeps_what_programs_read(report: EvalReport) -> None:
    """And adds beside it."""
    written: dict[str, Any] = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert {"target", "against", "prompts", "rewards", "joint"} < written.keys()
    assert written["against"] == "base"
    reward = written["rewards"]["clipscore"]
    assert {"n", "failed", "mean", "reference", "difference", "interval"} < reward.keys()
    assert reward["interval"][0] < reward["difference"] < reward["interval"][1]
    assert {"images", "improvement", "improvement_interval", "decline"} < written["joint"].keys()
    first, second = written["comparisons"]
    assert (first["rewards"], first["joint"]) == (written["rewards"], written["joint"])
    assert second["against"] == "runs/[bold]second"
    assert written["evaluation"]["images_per_prompt"] == 2
    alone = replace(report, comparisons=[]).to_json()
    assert (alone["against"], "joint" in alone, alone["comparisons"]) == (None, False, [])
    assert alone["rewards"]["clipscore"].keys() == {"n", "failed", "mean", "sources"}


def test_a_diversity_without_finite_images_is_shown_without_figures(report: EvalReport) -> None:
    broken = replace(ONE, diversity=torch.full((PROMPTS,), torch.nan))
    comparison = replace(report.comparisons[0], diversity=compare_diversity(broken, OTHER))
    out = io.StringIO()
    for table in replace(report, comparisons=[comparison]).tables():
        Console(file=out, width=80).print(table)
    assert ["diversity", "0"] in [line.split() for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("compared", [True, False])
def test_tables_fit_80_columns_and_lose_no_figure(report: EvalReport, compared: bool) -> None:
    report = report if compared else replace(report, comparisons=[])
    out = io.StringIO()
    console = Console(file=out, width=80)
    for table in report.tables():
        console.print(table)
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for result in report.rewards:
        assert f"{result.mean:.4f}" in text
        if compared:
            assert f"{result.low:+.4f} … {result.high:+.4f}" in text
    assert "Failed on images: ocr on 1." in text if not compared else "ocr on 2" in text
    for word in ("undecided", "runs/[bold]second", "x 2 images") if compared else ("x 2 images",):
        assert word in text
    assert "a_source_of_a_long_name" in text
    if not compared:  # a table of 30 columns does not wrap its title
        assert any(
            line.startswith(f"{report.target}: ") and "x 2 images" in line for line in text.splitlines()
        )
