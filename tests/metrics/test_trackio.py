"""Trackio has every step of a run once, from the real library, which works on this machine alone."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from marble_cli.config.schema import RunConfig
from marble_cli.metrics.jsonl import MetricsLog, read_rows, truncate_after
from marble_cli.metrics.tracker import TrackedRun, load_tracker, named_by_phase
from marble_cli.run.train import train

trackio = pytest.importorskip("trackio", reason="the extra `trackio` wants Pillow < 13; see pyproject.toml")
pytestmark = pytest.mark.filterwarnings("ignore")  # of that library


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what Trackio writes in the test's folder."""
    for name, module in list(sys.modules.items()):
        for constant, folder in (("TRACKIO_DIR", "data"), ("MEDIA_DIR", "data/media")):
            if name.split(".")[0] == "trackio" and hasattr(module, constant):
                monkeypatch.setattr(module, constant, tmp_path / folder)


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of the only run of a name."""
    (run,) = (run for run in trackio.Api().runs("marble") if run.name == name)
    storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
    assert run.id
    return list(storage.get_logs("marble", name))


@pytest.mark.parametrize("parts", [[(0, 5)], [(0, 5), (3, 6)], [(0, 5), (5, 6), (4, 8)], [(0, 4), (0, 2)]])
def test_every_step_is_there_once_however_a_run_was_resumed(
    tmp_path: Path, parts: list[tuple[int, int]]
) -> None:
    file = tmp_path / "metrics.jsonl"
    for start, (done, last) in enumerate(parts):
        truncate_after(file, done)
        metrics = MetricsLog(file)
        tracker = load_tracker("trackio")(TrackedRun(tmp_path, "first", {"seed": 7}, done))
        for step in range(done + 1, last + 1):
            row = {"step": step, "phase": "train", "loss": 100.0 * start + step}
            metrics.write(row)
            tracker.write(row)
        metrics.close()
        tracker.close()
    found = [(row["step"], row["loss"]) for row in rows_of("first")]
    assert found == [(row["step"], row["loss"]) for row in read_rows(file)]


def test_a_resumed_run_has_the_figures_of_metrics_jsonl_and_pictures(
    run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    more = (f"run.dir={tmp_path / 'run'}", "logging.trackers=[trackio]", "trainer.eval_every=1")
    for steps in (1, 2):
        config = run_config(*more, f"trainer.steps={steps}", "logging.images_every=1")
        assert train(config, resume="auto") == 0
    shown, figures = set(), dict[int, dict[str, Any]]()
    for row in rows_of("test"):
        step = row.pop("step")
        shown |= {step for key in row if key.startswith("samples")}
        figures.setdefault(step, {}).update(
            {key: value for key, value in row.items() if not key.startswith(("samples", "timestamp"))}
        )
    expected = dict[int, dict[str, Any]]()
    for row in read_rows(tmp_path / "run" / "metrics.jsonl"):
        expected.setdefault(row["step"], {}).update(named_by_phase(row))
    assert figures == expected
    assert shown == {0, 1, 2}
