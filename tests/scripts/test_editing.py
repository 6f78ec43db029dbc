"""The script of the editing world's figures, at its smallest size."""

from pathlib import Path

import pytest
from PIL import Image

from scripts import editing
from scripts.study import runner
from tests.scripts.smallest import BRIEF, SMALL, run_in_process


def test_the_page_has_every_run_and_its_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands = run_in_process(monkeypatch, runner)
    small = (word for word in (*SMALL, *BRIEF) if "rewards" not in word and "eval_every" not in word)
    monkeypatch.setattr(editing, "SETTINGS", ("preset=tiny_edit", *small, "trainer.eval_every=2"))
    monkeypatch.setattr(editing, "JUDGED", "trainer.eval_prompts=8")
    words = ["--runs", str(tmp_path / "runs"), "--docs", str(tmp_path), "--seeds", "4"]
    editing.main(words)

    assert [command[0] for command in commands] == ["train"] * len(editing.METHODS)
    weighted = next(command for command in commands if "balance=weighted_sum" in command)
    assert {word.split("=")[0] for word in weighted if ".weight=" in word} == {
        "rewards.following.weight",
        "rewards.keeping.weight",
    }
    page = (tmp_path / "results" / "editing.md").read_text()
    for method in editing.METHODS:
        assert len([line for line in page.splitlines() if line.startswith(f"| `{method}` |")]) == 2
    assert "8 held-out instructions" in page
    assert "2 steps of 4 images" in page
    for name, width in (("editing.png", 1000), ("editing-course.png", 500)):
        with Image.open(tmp_path / "images" / name) as picture:
            assert picture.width > width
