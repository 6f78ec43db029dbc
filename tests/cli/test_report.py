"""`marble report`: where the page goes, and what is refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

ROW = {"step": 1, "phase": "train", "reward/ocr/mean": 0.5, "reward/ocr/applicable": 4}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(json.dumps(ROW) + "\n")
    return folder


def test_the_page_of_a_run_goes_into_its_folder(marble: Callable, run: Path) -> None:
    shown = marble("report", run)
    assert (shown.code, shown.out) == (0, f"{run / 'report.html'}\n"), shown.err
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_page_of_several_runs_goes_where_it_is_told(
    marble: Callable, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "new" / "two.html"
    assert marble("report", run, run, "--output", file).out == f"{file}\n"
    assert file.is_file()
    monkeypatch.chdir(tmp_path)
    assert marble("report", run, run).out == "report.html\n"


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_a_folder_that_is_no_run_is_refused(marble: Callable, tmp_path: Path, folder: str) -> None:
    shown = marble("report", tmp_path / folder)
    assert shown.code == 2
    assert "Expected a run's folder" in shown.err
    assert "Traceback" not in shown.err
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_refused(marble: Callable, run: Path) -> None:
    shown = marble("report", run, "--output", "/proc/x/y.html")
    assert shown.code == 2
    assert "--output /proc/x cannot be written" in shown.err
    shown = marble("report", run, "--output", run)
    assert shown.code == 2
    assert f"--output {run} is a folder. Expected a file" in shown.err


def test_an_output_that_is_no_file_or_a_link_keeps_its_kind(
    marble: Callable, run: Path, tmp_path: Path
) -> None:
    """As /dev/null and /dev/stdout, whose places a root's page would take."""
    os.mkfifo(tmp_path / "pipe")
    shown = marble("report", run, "--output", tmp_path / "pipe")
    assert shown.code == 2
    assert "is a device or a pipe. Expected a file" in " ".join(shown.err.split())
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link.html").symlink_to(tmp_path / "page.html")
    for _ in range(2):
        assert marble("report", run, "--output", tmp_path / "link.html").code == 0
        assert (tmp_path / "link.html").is_symlink()
        assert (tmp_path / "page.html").stat().st_size > 10_000
