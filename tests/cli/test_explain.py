"""`marble explain`: what it prints and writes, and what it refuses."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

ROW = {
    "step": 1,
    "phase": "train",
    "balance/refresh": 1,
    "balance/alpha/ocr": 0.6,
    "balance/alpha/clip": 0.4,
    "balance/cosine/ocr": 0.2,
    "balance/cosine/clip": -0.1,
    "balance/pairwise_cosine/ocr/clip": -0.5,
    "reward/ocr/applicable": 12,
    "reward/clip/applicable": 24,
}
LINE = json.dumps(ROW) + "\n"


@pytest.fixture
def run(tmp_path: Path, marble: Callable) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(LINE)
    (folder / "config.yaml").write_text(
        marble("train", "balance=marble", "rewards=[colorfulness]", "--print-config").out
    )
    return folder


def test_tables_and_pictures(marble: Callable, run: Path) -> None:
    shown = marble("explain", run)
    assert shown.code == 0, shown.err
    assert "balance  marble, mode amortized, refresh_every" in shown.out
    assert "some reward pushed down  100 % of 1 measured step, lowest cosine -0.10" in shown.out
    for name in ("conflict", "shares", "cosines"):
        assert (run / "explain" / f"{name}.png").is_file()
        assert f"{run / 'explain' / name}.png\n" in shown.out
    assert "not drawn: pareto.png" in shown.out
    written = f"{run}"
    assert all(len(line) <= 80 for line in shown.out.splitlines() if written not in line)


def test_json_and_output(marble: Callable, run: Path, tmp_path: Path) -> None:
    shown = marble("explain", run, "--json", "--output", tmp_path / "elsewhere")
    tree = json.loads(shown.out)
    assert tree["balance"]["mode"] == "amortized"
    assert tree["pushed_down"]["negative"] == 1.0
    assert tree["rewards"]["clip"]["cosine"]["lowest"] == -0.1
    assert tree["pictures"] == [
        str(tmp_path / "elsewhere" / f"{n}.png") for n in ("conflict", "shares", "cosines")
    ]
    assert not (run / "explain").exists()


def test_a_dominant_share_of_the_step_is_reported(marble: Callable, run: Path) -> None:
    (run / "config.yaml").write_text(marble("train", "balance=marble_stepwise", "--print-config").out)
    shown = " ".join(marble("explain", run).out.split())
    assert "marble, mode full, cosines of the 0.25 of a step that the balance saw" in shown


def test_a_torn_last_line_is_left_out_with_a_note(
    marble: Callable, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "metrics.jsonl").write_text(LINE + LINE[:40])
    monkeypatch.setenv("COLUMNS", "40")
    shown = marble("explain", run)
    assert shown.code == 0
    assert re.search(r"^clip +0\.40 .* -0\.10 +-0\.10 +100 % +1$", shown.out, re.MULTILINE)
    assert "note: the last line of metrics.jsonl is cut short" in shown.out


def test_settings_that_decide_nothing_are_not_shown(marble: Callable, run: Path) -> None:
    words = ("balance=upgrad", "balance.mode=amortized", "balance.refresh_when=stale")
    config = marble("train", *words, "rewards=[colorfulness]", "--print-config")
    (run / "config.yaml").write_text(config.out)
    shown = marble("explain", run).out
    assert "balance  upgrad, mode amortized, refresh_when stale, ema" in shown
    assert "floor" not in shown


def test_unreadable_settings_become_a_note(marble: Callable, run: Path) -> None:
    (run / "config.yaml").unlink()
    shown = marble("explain", run)
    assert shown.code == 0
    assert "balance  unknown" in shown.out
    assert "the settings are unknown" in shown.out
    assert "".join(shown.out.split()).count("config.yamldoesnotexist") == 1
    assert "".join(shown.out.split()).count(str(run / "config.yaml")) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "holds no metrics.jsonl"),
        ("", "no finished training step"),
        (LINE[:40], "no finished training step"),
        ('{"step": 0, "phase": "eval"}\n', "no finished training step"),
        (LINE + "oops\n" + LINE, "metrics.jsonl, line 2: expected a JSON object"),
        (LINE + "[1]\n", "metrics.jsonl, line 2: expected a JSON object"),
        (LINE + "\xff\n" + LINE, "metrics.jsonl, line 2"),
    ],
)
def test_damaged_metrics_are_refused(
    marble: Callable, tmp_path: Path, content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "metrics.jsonl").write_bytes(content.encode("latin-1"))
    shown = marble("explain", tmp_path)
    assert shown.code == 2
    assert said in shown.err
    assert "Traceback" not in shown.err
    assert not (tmp_path / "explain").exists()


def test_a_folder_that_is_no_run_is_refused(marble: Callable, tmp_path: Path, run: Path) -> None:
    assert "nowhere is not a folder" in marble("explain", tmp_path / "nowhere").err
    assert f"one of the runs in it, such as {run}." in " ".join(marble("explain", run.parent).err.split())
    shown = marble("explain", run, "--output", "/proc/x")
    assert shown.code == 2
    assert "--output /proc/x cannot be written" in shown.err
