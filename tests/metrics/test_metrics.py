"""The metrics file, the terminal view, and pictures."""

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from marble_cli.errors import RequestError
from marble_cli.metrics.figures import curves, image_grid
from marble_cli.metrics.jsonl import finite, read_checked_rows, read_rows, truncate_after
from marble_cli.metrics.terminal import TerminalView


def row(step: int, phase: str = "train") -> dict[str, object]:
    return {
        "step": step,
        "phase": phase,
        "reward/ocr/mean": 0.1 * step,
        "reward/ocr/applicable": 4,
        "balance/alpha/ocr": 0.5,
        "time/step": 1.0,
    }


def test_non_finite_value_is_left_out() -> None:
    row = {"step": 1, "phase": "train", "a": float("nan"), "b": float("inf"), "c": 0.5}
    assert finite(row) == {"step": 1, "phase": "train", "c": 0.5}


def test_rows_of_other_programs_lose_what_is_no_figure(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1, "phase": "train", "a": NaN, "b": -Infinity, "c": null, "d": 0.5}\n')
    assert read_checked_rows(path) == ([{"step": 1, "phase": "train", "d": 0.5}], False)


@pytest.mark.parametrize("step", ["NaN", "null", '"1"', "1.5", "true", "[1]"])
def test_a_row_whose_step_is_no_number_is_refused(tmp_path: Path, step: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(f'{{"step": 1, "phase": "train"}}\n{{"step": {step}, "phase": "train"}}\n')
    with pytest.raises(RequestError, match="line 2: expected a JSON object with step, a whole number, and"):
        read_checked_rows(path)


def test_truncate_after_drops_later_steps_and_a_truncated_line(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row(step)) + "\n" for step in range(1, 5)) + '{"step": 5, "pha')
    truncate_after(path, 3)
    assert [line["step"] for line in read_rows(path)] == [1, 2, 3]
    evaluations = [row(step) | {"phase": "eval"} for step in (2, 3)]
    path.write_text(
        "".join(json.dumps(line) + "\n" for line in [row(1), row(2), evaluations[0], row(3), evaluations[1]])
    )
    truncate_after(path, 3)
    assert len(read_rows(path)) == 5
    truncate_after(path, 3, evaluated=False)
    assert read_rows(path) == [row(1), row(2), evaluations[0], row(3)]
    truncate_after(path, 0)
    assert read_rows(path) == []
    path.write_text("".join(json.dumps(line) + "\n" for line in [row(0) | {"phase": "eval"}, row(1)]))
    truncate_after(path, 0)
    assert read_rows(path) == [row(0) | {"phase": "eval"}], "of a run that failed in its first step"
    truncate_after(path, 0, evaluated=False)
    assert read_rows(path) == []
    path.write_text("oops\n" + json.dumps(row(1)) + "\n")
    with pytest.raises(RequestError, match="line 1"):
        truncate_after(path, 1)
    assert path.read_text().startswith("oops"), "nothing is lost"


def test_view_without_a_terminal_prints_plain_lines() -> None:
    out = io.StringIO()
    view = TerminalView(9, 0, Console(file=out, width=200))
    view.stage("rollout", 4)
    view.advance(4)
    view.write(row(3))
    view.close()
    assert out.getvalue().startswith("step     3/9  ocr 0.300")
    assert "\x1b" not in out.getvalue()
    huge, small = (row(3) | {"reward/ocr/mean": mean} for mean in (-7.169e299, 2.5e-20))
    assert " ocr -7.17e+299 " in view.line(huge)
    assert " ocr 2.50e-20 " in view.line(small)
    assert " ocr 0.000 " in view.line(row(3) | {"reward/ocr/mean": 0.0})


def test_curves_and_image_grid_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    rows = [row(step) for step in range(1, 6)] + [row(5, "eval")]
    path.write_text("".join(json.dumps(line) + "\n" for line in rows))
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    curves(path, tmp_path / "curves.png")
    image_grid([("base", images), ("trained", images)], ["a cup", "a kite", "a boat"], tmp_path / "grid.png")
    for name in ("curves.png", "grid.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 200
