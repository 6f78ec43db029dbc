"""Pictures of any prompt or name; a failure to draw one is only a warning."""

import json
import logging
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.text import Text
from PIL import Image

from marble_cli.config.compose import compose
from marble_cli.data.prompts import Prompt
from marble_cli.evaluate.score import Evaluation
from marble_cli.explain.analysis import explain
from marble_cli.explain.figures import draw
from marble_cli.metrics import figures
from marble_cli.metrics.figures import curves, image_grid, on_white, styled, try_to_draw
from marble_cli.metrics.history import read_history
from marble_cli.rewards.scorer import Scores
from marble_cli.run.recorder import RunRecorder
from marble_cli.run.state import Progress
from tests.metrics.odd_text import IMAGES, ODD

pytestmark = pytest.mark.usefixtures("new_fonts")


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_image_grid_draws_any_prompt_and_label(tmp_path: Path, text: str) -> None:
    image_grid([(text, IMAGES), ("base", IMAGES)], [text], tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        assert min(picture.size) > 100


def test_pictures_of_several_sizes_share_a_grid_and_a_white_sheet(tmp_path: Path) -> None:
    images = [torch.full((3, height, width), 7, dtype=torch.uint8) for height, width in ((4, 4), (2, 8))]
    sheet = on_white(images)
    assert sheet.shape == (2, 3, 4, 8)
    assert torch.equal(sheet[0, :, :, 2:6], images[0])
    assert torch.equal(sheet[1, :, 1:3], images[1])
    assert [(image == 255).sum().item() for image in sheet] == [3 * 16, 3 * 16]
    assert torch.equal(on_white([*IMAGES]), IMAGES)
    image_grid([("step 1", images)], ["a", "b"], tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        assert min(picture.size) > 100


def test_every_strip_of_frames_is_within_the_grid(tmp_path: Path) -> None:
    """Strips are three times as wide, so a row holds two of them."""
    strips = torch.zeros(5, 3, 2, 8, dtype=torch.uint8)
    sizes = []
    for count in (2, 5):
        image_grid([("a", strips[:count])], ["a"] * count, tmp_path / "grid.png")
        with Image.open(tmp_path / "grid.png") as picture:
            sizes.append(picture.size)
            dark = np.asarray(picture.convert("L")) < 20
    assert sizes[1] == (sizes[0][0], pytest.approx(3 * sizes[0][1], abs=3))
    assert dark[dark.any(axis=1)].mean() > 0.5
    assert all(part.any() for part in np.array_split(dark, 3))


NAMES = [*[name for name in ODD.values() if name.strip() and "/" not in name][:26:3], "ocr"]


@pytest.mark.parametrize(("name", "other"), list(zip(NAMES[::2], NAMES[1::2], strict=True)))
def test_curves_and_explanations_draw_any_name(tmp_path: Path, name: str, other: str) -> None:
    row: dict[str, Any] = {"phase": "train", "balance/refresh": 1, "balance/gap": 0.0, "time/step": 1.0}
    for k, reward in enumerate((name, other)):
        row |= {
            f"reward/{reward}/mean": 0.1 + k,
            f"balance/alpha/{reward}": 0.5,
            f"balance/cosine/{reward}": 0.3 - k,
            f"reward/{reward}/std": 0.1,
            f"reward/{reward}/applicable": 4,
            f"balance/grad_norm/{reward}": 1.0,
            f"balance/weight/{reward}": 0.5,
        }
    row |= {f"balance/pair_cosine/{name}/{other}": -0.5}
    rows = [{**row, "step": 1}, {**row, "step": 2}]
    for step in (1, 2):
        means = {key: value for key, value in row.items() if key.endswith("/mean")}
        rows.append({**means, "step": step, "phase": "eval"})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    history = read_history(tmp_path)
    drawn, left_out = draw(history, explain(history), tmp_path / "explain")
    assert {path.name for path in drawn} >= {"shares.png", "cosines.png", "pareto.png"}
    assert not [reason for reason in left_out if not reason.startswith("conflict.png")]


def test_drawing_failure_warns_and_leaves_no_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "grid.png"
    errors: list[Exception] = [
        ValueError("ParseException"),
        RuntimeError("x"),
        MemoryError(),
        UserWarning("glyph"),
        OSError(28, "No space left on device"),
    ]
    for error in errors:
        file.write_bytes(b"of an earlier call")

        def fail(*rest: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(Text, "draw", fail)
        try_to_draw(file, "All is well.", lambda: image_grid([("a", IMAGES)], ["a"], file))
        assert not file.exists()
    told = [record for record in caplog.records if record.name == "marble"]
    assert [record.levelno for record in told] == [logging.WARNING] * len(errors)
    assert all(record.getMessage().startswith(str(file)) for record in told)
    assert all(record.getMessage().endswith("All is well.") for record in told)
    assert plt.get_fignums() == []


def test_failed_picture_of_an_explanation_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {
        "phase": "train",
        "balance/refresh": 1,
        "reward/ocr/mean": 1.0,
        "balance/alpha/ocr": 1.0,
        "balance/cosine/ocr": 1.0,
    }
    lines = [{**row, "step": step} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def fail(history: Any) -> None:
        plt.figure()
        raise RuntimeError("matplotlib is out of order")

    monkeypatch.setattr("marble_cli.explain.figures.shares", fail)
    history = read_history(tmp_path)
    drawn, left_out = draw(history, explain(history), tmp_path / "explain")
    assert [path.name for path in drawn] == ["cosines.png"]
    assert "shares.png, RuntimeError: matplotlib is out of order" in left_out
    assert plt.get_fignums() == []


def test_styled_leaves_other_figures_open() -> None:
    mine = plt.figure()
    with styled([]):
        plt.figure()
    assert plt.get_fignums() == [mine.number]
    plt.close(mine)


def test_package_draws_all_text_without_mathematics() -> None:
    """All drawing goes through `styled`: nothing else opens a style context or a figure."""
    folder = Path(figures.__file__).parents[1]
    users = {
        str(path.relative_to(folder)): path.read_text("utf-8").count("rc_context")
        for path in folder.rglob("*.py")
        if "pyplot" in path.read_text("utf-8")
    }
    assert users == {"explain/figures.py": 0, "metrics/figures.py": 1}


def test_run_continues_if_sample_pictures_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Kept:
        """A stand-in for the trackers of a run."""

        captions: ClassVar[list[str]] = []

        def images(self, step: int, images: torch.Tensor, captions: list[str]) -> None:
            self.captions += captions

    evaluation = Evaluation([Prompt("$5", {}, "text")], [*IMAGES], Scores([], *[torch.zeros(0, 1)] * 3))
    config = compose(["preset=tiny", "logging.images_every=1"])
    recorder = RunRecorder(config, tmp_path, Progress.__new__(Progress), main=True)
    recorder.trackers = Kept()  # type: ignore[assignment]
    recorder.pictures(1, evaluation, first=True)
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["step-00000001", "step-00000001.png"]

    def fail(*rest: Any) -> None:
        raise RuntimeError("matplotlib is out of order")

    monkeypatch.setattr("marble_cli.metrics.figures.image_grid", fail)
    recorder.pictures(2, evaluation, first=False)
    assert "step-00000002.png could not be drawn: RuntimeError: matplotlib is out of order" in caplog.text
    assert "The run continues without these pictures." in caplog.text
    assert Kept.captions == ["$5", "$5"]
