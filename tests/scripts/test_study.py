"""The study at its smallest size: a few cells of two rewards, the learning rates, and the report."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from marble_cli.config.compose import compose
from marble_cli.config.counts import geometry, micro_batches
from marble_cli.plan.work import add_passes
from marble_cli.policy.size import model_size
from scripts.study import __main__ as study
from scripts.study import cells, choose, conduct, figures, report, runner, statistics, tables
from scripts.study.scores import Folders, Scores, base_name
from tests.scripts.smallest import BRIEF, FEWER, REWARDS, SMALL, run_in_process

BUDGET, NAMES, RATES = "short", ("marble", "merge_concat"), (1e-3,)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Make the study one of two rewards, one rate, and one seed for tuning and one for judging."""
    for module in (cells, conduct, figures, runner, statistics, tables):
        monkeypatch.setattr(module, "REWARDS", REWARDS)
    specialists = {f"only_{name}": name for name in REWARDS}
    for module in (cells, choose, report, runner):
        monkeypatch.setattr(module, "SPECIALISTS", specialists, raising=False)
    alone = {method: (f"rewards=[{name}]",) for method, name in specialists.items()}
    monkeypatch.setattr(cells, "METHODS", {"marble": (), **alone})
    budget = replace(cells.BUDGETS[BUDGET], steps=2, seeds=(0,), overrides=(), methods=(*NAMES, *specialists))
    for module in (cells, report, runner, study):
        monkeypatch.setattr(module, "BUDGETS", {BUDGET: budget})
    for module in (cells, runner):
        monkeypatch.setattr(module, "COMMON", ("preset=tiny", *BRIEF, *SMALL, *FEWER))
    monkeypatch.setattr(cells, "RATES", RATES)
    monkeypatch.setattr(cells, "SCALES", (0.5,))
    monkeypatch.setattr(runner, "TUNING_PROMPTS", 2)
    monkeypatch.setattr(runner, "JUDGED_PROMPTS", 2)
    monkeypatch.setattr(statistics, "RESAMPLES", 20)
    monkeypatch.setattr(statistics, "FIGURES", (*REWARDS, *statistics.FIGURES[-3:]))
    return monkeypatch


def run_here(folders: Folders, patch: pytest.MonkeyPatch) -> list[list[str]]:
    """Run the whole study in this process; return the names of the cells that ran."""
    run_in_process(patch, runner)
    ran: list[list[str]] = []

    def run_all(names: list[list[str]], *_: object) -> None:
        for name in names:
            ran.append(name)
            runner.main([str(folders.runs), str(folders.results), *name])

    patch.setattr(study, "run_all", run_all)
    study.main(["--runs", str(folders.runs), "--results", str(folders.results), "--workers", "1"])
    return ran


def test_the_study_from_its_first_cell_to_the_report(
    small: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = Folders(tmp_path / "runs", tmp_path / "results")
    ran = run_here(folders, small)
    assert ran[:2] == [["base", "100"], ["base", "0"]]
    tuned = [cell for cell in ran if cell[-1] == "100"]
    judged = {cell[1] for cell in ran[2:] if cell[-1] == "0"}
    assert len(tuned) == 1 + 3 + 1, "the base, three methods and a merge"
    assert judged == {*NAMES, "only_colorfulness", "only_compressibility"}
    assert run_here(folders, small) == [], "finished cells are skipped"

    scores = Scores.read(folders.result(f"{BUDGET}/marble-0.001-100"))
    assert scores.values.shape == (2, 6)
    assert scores.facts["measured"] == 2
    assert "optimizer.lr=0.001" in scores.facts["overrides"]

    report.main(["--results", str(folders.results), "--output", str(tmp_path)])
    written = json.loads((tmp_path / "results.json").read_text())
    assert {row["method"] for row in written[BUDGET]["best"]} == judged
    assert all(
        (tmp_path / f"{name}-{BUDGET}.png").stat().st_size > 1000 for name in ("rates", "gains", "outcomes")
    )
    assert "at the drift of `marble`" in (tmp_path / "results.md").read_text()


def summary(rate: float, gain: float, drift: float) -> statistics.Summary:
    interval = statistics.Interval(gain, gain, gain)
    figures = dict.fromkeys((*cells.REWARDS, statistics.COMPOSITE), interval)
    return statistics.Summary(
        cells.Cell(BUDGET, "marble", rate, 100), 1, figures, 0, drift, None, None, math.nan
    )


def test_the_best_rate_has_the_highest_mean_gain() -> None:
    curve = {rate: summary(rate, gain, 1.0) for rate, gain in ((1e-3, 0.1), (2e-3, 0.3), (4e-3, 0.2))}
    assert choose.best_rate(curve) == 2e-3


def test_rates_are_tried_until_the_best_one_has_two_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    gains = {1e-3: 0.0, 2e-3: 0.4, 3e-3: 0.3, 4e-3: 0.2, 5e-3: 0.1}
    monkeypatch.setattr(cells, "RATES", tuple(gains))
    curve: choose.Curve = {}
    tried = []
    while found := choose.next_cells(curve, BUDGET, "marble"):
        tried.append([cell.rate for cell in found])
        curve = {**curve, **{cell.rate: summary(cell.rate, gains[cell.rate], 1.0) for cell in found}}
    assert tried == [[3e-3], [2e-3, 4e-3], [1e-3]]
    assert choose.best_rate(curve) == 2e-3


def test_the_rate_of_a_drift_is_interpolated_within_the_grid() -> None:
    curve = {rate: summary(rate, 0.0, drift) for rate, drift in ((1e-3, 0.01), (4e-3, 0.16))}
    assert choose.rate_at_drift(curve, 0.04) == 2e-3, "drift grows with the square of the rate here"
    assert choose.rate_at_drift(curve, 1.0) == 4e-3


def test_figures_of_a_seed_against_counting_by_hand() -> None:
    n = np.nan
    #                       better  one worse  equal  all worse  nothing applies
    differences = np.array([[1.0, 0.5, 0.0, -1.0, n]] + [[n, -0.5, 0.0, -1.0, n]] * 4)
    figures = statistics.measure(differences)
    assert figures[statistics.IMPROVED] == 1 / 5
    assert figures[statistics.DECLINED] == 1 / 5
    assert figures["clipscore"] == 0.125
    assert figures[statistics.WORST] == -0.5
    assert figures[statistics.COMPOSITE] == pytest.approx((0.125 - 4 * 0.5) / 5)


def test_the_interval_of_a_constant_gain_has_no_width() -> None:
    figures = statistics.with_intervals([np.full((5, 8), 0.25)] * 2)
    assert figures[statistics.COMPOSITE] == statistics.Interval(0.25, 0.25, 0.25)
    assert figures[statistics.IMPROVED] == statistics.Interval(1.0, 1.0, 1.0)


def test_scores_come_back_as_they_were(tmp_path: Path) -> None:
    written = Scores(np.array([[1.5, np.nan]], dtype=np.float32), {"drift": 0.125})
    written.write(tmp_path / "short" / "marble.npz")
    read = Scores.read(tmp_path / "short" / "marble.npz")
    np.testing.assert_array_equal(read.values, written.values)
    assert read.facts == written.facts
    assert [file.name for file in (tmp_path / "short").iterdir()] == ["marble.npz"]
    assert base_name(3) == "base-3"


def test_methods_at_equal_flop_take_more_of_their_cheaper_steps() -> None:
    """Dropping a quarter of the images costs as much as training on three quarters of them."""
    cost = {}
    for share in (1.0, 0.75, 0.5):
        config = compose(["preset=tiny", *cells.STALE, f"trainer.select.fraction={share}"])
        size, counts = model_size(config.model, config.model.resolution), geometry(config)
        passes = size.cost.forward, size.cost.backward
        cost[share] = add_passes(config, counts.images, counts.samples, micro_batches(config), *passes)
    found = {"marble_select": cost[0.5] / cost[1.0], "pair_drop": cost[0.75] / cost[1.0]}
    assert found == pytest.approx(cells.COST, abs=0.005)
    steps = {method: cells.Cell("short", method, 1e-3, 0).overrides for method in cells.CHEAPER}
    assert "trainer.steps=42" in steps["marble_select"]
    assert "trainer.steps=35" in steps["pair_drop"]
    assert "trainer.steps=30" in steps["pair"]
