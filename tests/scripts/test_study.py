"""The study at its smallest size: three cells of two rewards, and the report on them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.study import __main__ as study
from scripts.study import cells, figures, report, runner, statistics, tables
from tests.scripts.smallest import BRIEF, REWARDS, SMALL, run_in_process

NAMES = (cells.BASE, "marble_amortised", cells.WEIGHTED)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Run three cells of two steps and two held-out prompts per source; yield their folder."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        small = {name: (SMALL[0], *cells.METHODS[name]) for name in NAMES}
        for module in (study, report, runner, statistics):
            patch.setattr(module, "CELLS", small)
        for module in (figures, runner, statistics, tables):
            patch.setattr(module, "REWARDS", REWARDS)
        patch.setattr(runner, "BUDGET", ("preset=tiny", *BRIEF, *SMALL))
        patch.setattr(statistics, "RESAMPLES", 20)
        run_in_process(patch, runner)
        for name in NAMES:
            study.main(["--directory", str(folder), "--run-cell", name, "--seeds", "0"])
        yield folder


def test_finished_cells_are_skipped(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study.main(["--directory", str(results), "--seeds", "0", "--workers", "1", "--cells", *NAMES])
    assert "0 cells to do, 3 done" in capsys.readouterr().out


def test_every_held_out_image_is_scored(results: Path) -> None:
    for name in NAMES:
        scores = json.loads((results / f"{name}-0" / "scores.json").read_text())
        assert {reward: len(scores[reward]) for reward in scores} == dict.fromkeys(REWARDS, 6)
    weights = runner.unit_weights(results / f"{cells.BASE}-0" / "scores.json")
    assert [weight.split("=")[0] for weight in weights] == [f"rewards.{name}.weight" for name in REWARDS]


def test_a_cell_with_other_settings_is_refused(results: Path, tmp_path: Path) -> None:
    (tmp_path / "cell.json").write_text("[]")
    with pytest.raises(SystemExit, match=r"other settings.*--directory"):
        runner.is_done(tmp_path, cells.BASE)


def test_the_report_counts_cells_without_results(results: Path, tmp_path: Path) -> None:
    report.main(["--directory", str(results), "--output", str(tmp_path)])
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["cells"].keys() == {"marble_amortised", cells.WEIGHTED}
    assert written["cells"]["marble_amortised"]["seeds"] == 1
    assert "2 of 6 runs" in (tmp_path / "results.md").read_text()
    assert all((tmp_path / picture).stat().st_size > 1000 for picture in ("gains.png", "balance.png"))
