"""Trackers get every record of a run, continue when it resumes, and never stop it."""

import json
import math
import re
import time
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from marble_cli.config.schema import RunConfig
from marble_cli.errors import ConfigError
from marble_cli.metrics.jsonl import read_rows
from marble_cli.metrics.tensorboard import TensorBoard
from marble_cli.metrics.tracker import TrackedRun, Trackers, load_tracker, named_by_phase
from marble_cli.plugins import trackers
from marble_cli.run.recorder import RunRecorder
from marble_cli.run.train import train

RunConfigMaker = Callable[..., RunConfig]
PLACES = ("start", "write", "images", "close")


def read_back(folder: Path) -> EventAccumulator:
    """Read event files as TensorBoard does, and keep everything."""
    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    return found


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = read_back(folder)
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def expected(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What metrics.jsonl holds, in the precision of TensorBoard."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in read_rows(folder / "metrics.jsonl"):
        for name, value in named_by_phase(row).items():
            curves.setdefault(name, []).append((row["step"], torch.tensor(float(value)).item()))
    return curves


def test_tensorboard_reads_back_rows_pictures_and_prompts(tmp_path: Path) -> None:
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 3, 4, 5)
    board = TensorBoard(TrackedRun(tmp_path, "n", {"trainer": {"seed": 7}}, 0))
    board.write({"step": 1, "phase": "train", "loss": 0.5, "skipped": 1})
    board.write({"step": 1, "phase": "eval", "reward/ocr/mean": 2.0})
    board.images(1, images, ["a cup", "two"])
    found = read_back(tmp_path)  # without a close, as after a kill
    assert scalars(tmp_path) == {
        "loss": [(1, 0.5)], "skipped": [(1, 1.0)], "eval/reward/ocr/mean": [(1, 2.0)],
    }  # fmt: skip
    assert found.Tags()["images"] == ["samples/00", "samples/01"]
    (picture,) = found.Images("samples/01")
    assert (picture.step, picture.width, picture.height) == (1, 5, 4)
    texts = {
        tag: found.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in found.Tags()["tensors"]
    }
    assert texts["samples/01/text_summary"] == "two"
    assert json.loads(texts["config/text_summary"]) == {"trainer": {"seed": 7}}
    board.close()


@pytest.mark.parametrize("parts", [[(0, 5)], [(0, 5), (3, 6)], [(0, 5), (5, 6), (4, 8)], [(0, 4), (0, 2)]])
def test_tensorboard_shows_every_step_once_however_a_run_was_resumed(
    tmp_path: Path, parts: list[tuple[int, int]]
) -> None:
    curve: dict[int, float] = {}
    for start, (done, last) in enumerate(parts):
        board = TensorBoard(TrackedRun(tmp_path, "n", {}, done))
        curve = {step: value for step, value in curve.items() if step <= done}
        for step in range(done + 1, last + 1):
            curve[step] = 100.0 * start + step
            board.write({"step": step, "phase": "train", "loss": curve[step]})
        board.close()
    assert scalars(tmp_path)["loss"] == list(curve.items())


@pytest.mark.parametrize("prompts", [2, 1])
def test_a_resumed_run_has_the_figures_of_metrics_jsonl_in_tensorboard(
    run_config: RunConfigMaker, tmp_path: Path, prompts: int
) -> None:
    """With other held-out prompts, the step that it resumes after is evaluated anew."""
    more = (f"run.dir={tmp_path}", "logging.trackers=[tensorboard]", "trainer.eval_every=1")
    for steps, held_out in ((1, 2), (2, prompts)):
        drawn = (f"trainer.steps={steps}", f"trainer.eval_prompts={held_out}", "logging.images_every=1")
        config = run_config(*more, *drawn)
        assert train(config, resume="auto") == 0
        began = int(time.time())
        while int(time.time()) == began:
            time.sleep(0.01)
    found = read_back(tmp_path)
    assert scalars(tmp_path) == expected(tmp_path)
    assert {step for step, _ in scalars(tmp_path)["eval/eval/composite"]} == {0, 1, 2}
    assert [event.step for event in found.Images("samples/00")] == [0, 1, 2]
    assert "wandb" not in {path.name for path in tmp_path.iterdir()}


def test_trackers_get_the_rows_of_metrics_jsonl(
    run_config: RunConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = RunRecorder.record

    def record(self: RunRecorder, metrics: dict[str, Any]) -> None:
        original(self, metrics | {"grad_norm": math.nan})

    monkeypatch.setattr(RunRecorder, "record", record)
    config = run_config(f"run.dir={tmp_path}", "logging.trackers=[tensorboard]", "trainer.steps=1")
    assert train(config, resume="auto") == 0
    assert scalars(tmp_path) == expected(tmp_path)
    assert "grad_norm" not in expected(tmp_path)


class Faulty:
    """A tracker that raises wherever `place` says, and counts its calls."""

    place = "nowhere"
    calls: ClassVar[list[str]] = []

    def __init__(self, run: TrackedRun) -> None:
        self._do("start")

    def write(self, metrics: dict[str, Any]) -> None:
        self._do("write")

    def images(self, step: int, images: Tensor, captions: list[str]) -> None:
        self._do("images")

    def close(self) -> None:
        self._do("close")

    def _do(self, what: str) -> None:
        self.calls.append(what)
        if what == self.place:
            raise SystemExit("the service is gone.\nTry again")


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the tracker `faulty`."""
    entry = EntryPoint("faulty", f"{__name__}:Faulty", "marble.trackers")
    load = EntryPoint.load
    monkeypatch.setattr(EntryPoint, "load", lambda entry: Faulty if entry.name == "faulty" else load(entry))
    monkeypatch.setattr("marble_cli.metrics.tracker.trackers", lambda: {**trackers(), "faulty": entry})
    monkeypatch.setattr(Faulty, "calls", [])


@pytest.mark.usefixtures("faulty")
@pytest.mark.parametrize("place", PLACES)
def test_a_tracker_that_raises_is_left_out_with_one_warning(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Faulty, "place", place)
    run = TrackedRun(tmp_path, "n", {}, 0)
    all_of_them = Trackers(["faulty", "tensorboard", "faulty"], run, {})
    for step in (1, 2):
        all_of_them.write({"step": step, "phase": "train", "loss": 1.0})
    all_of_them.images(2, torch.zeros(1, 3, 4, 4, dtype=torch.uint8), ["a cup"])
    all_of_them.close()
    every = ["start", "write", "write", "images", "close"]
    assert Faulty.calls == every[: every.index(place) + 1]
    assert [record.message for record in caplog.records] == [
        "tracker faulty failed and gets no more of this run (SystemExit: the service is gone); "
        "metrics.jsonl has everything"
    ]
    assert scalars(tmp_path)["loss"] == [(1, 1.0), (2, 1.0)]  # the other one has everything


@pytest.mark.usefixtures("faulty")
def test_a_run_whose_tracker_fails_writes_what_a_run_without_one_writes(
    run_config: RunConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Faulty, "place", "write")
    written = []
    for name in ("faulty", ""):
        config = run_config(f"run.dir={tmp_path / f'of-{name}'}", f"logging.trackers=[{name}]")
        assert train(config, resume="auto") == 0
        rows = read_rows(tmp_path / f"of-{name}" / "metrics.jsonl")
        written.append([(row["step"], row["phase"], row["grad_norm"], row.keys()) for row in rows])
    assert written[0] == written[1]
    log = (tmp_path / "of-faulty" / "log.txt").read_text()
    assert log.count("tracker faulty failed") == 1
    assert len(written[0]) == 2


def test_the_tracker_of_the_guide_records_a_run(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "trackers.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    for done in (0, 1):
        tracker = names["Lines"](TrackedRun(tmp_path, "first", {}, done))
        tracker.write({"step": done + 1, "phase": "train"})
        tracker.images(done + 1, torch.zeros(1, 3, 4, 4, dtype=torch.uint8), ["a cup"])
        tracker.close()
    assert (tmp_path / "lines" / "rows.txt").read_text().splitlines() == [
        "first continues after step 0", "{'step': 1, 'phase': 'train'}", "1 ['a cup']",
        "first continues after step 1", "{'step': 2, 'phase': 'train'}", "2 ['a cup']",
    ]  # fmt: skip


def test_an_unknown_tracker_is_refused_with_the_nearest_name(
    run_config: RunConfigMaker, tmp_path: Path
) -> None:
    config = run_config(f"run.dir={tmp_path / 'run'}", "logging.trackers=[tensorbord]")
    with pytest.raises(ConfigError, match="no tracker 'tensorbord'.* did you mean 'tensorboard'") as error:
        train(config, resume="auto")
    assert error.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_a_tracker_without_its_library_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("tensorboard", "no_such_library_at_all:X", "marble.trackers")
    monkeypatch.setattr("marble_cli.metrics.tracker.trackers", lambda: {"tensorboard": entry})
    with pytest.raises(ConfigError, match=r"cannot be imported: No module named .*marble-cli\[tensorboard\]"):
        load_tracker("tensorboard")
