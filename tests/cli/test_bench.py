"""`marble bench` on the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

SMALL = ("benchmark.prompts=1", "benchmark.steps=1", "~benchmark.rewards.clipscore", "~benchmark.rewards.ocr")


def test_bench_prints_one_table_or_the_file(marble: Callable, tmp_path: Path) -> None:
    arguments = ("bench", "base", *SMALL, "--benchmark", "tiny", "--output", tmp_path)
    shown = marble(*arguments)
    assert shown.code == 0, shown.err
    lines = shown.out.splitlines()
    assert "base" in lines[0]
    assert all(len(line) <= 80 for line in lines[:-1])
    assert shown.out.count("…") == 3
    assert str(tmp_path / "bench.json") in lines[-1]
    printed = marble(*arguments, "--json")
    assert json.loads(printed.out) == json.loads((tmp_path / "bench.json").read_text())


def test_the_folder_of_a_cell_is_a_target_though_it_reads_as_an_override(
    marble: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "balance=mgda").mkdir()
    shown = marble("bench", "base", "balance=mgda", "--benchmark", "tiny")
    assert (shown.code, shown.out) == (2, "")
    assert "balance=mgda is neither a checkpoint" in shown.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("base", "--benchmark", "genevl"), "did you mean 'geneval'"),
        (("base", "--benchmark", ","), "expected a name, such as tiny"),
        (("benchmark.steps=3", "--benchmark", "tiny"), "expected a target"),
        (("nowhere", "--benchmark", "tiny"), "nowhere is neither a checkpoint"),
        (("base", "evaluation.steps=3", "--benchmark", "tiny"), "a benchmark's own protocol decides this"),
        (
            ("base", "benchmark.source.root=nowhere", "--benchmark", "geneval"),
            "evaluation_metadata.jsonl does",
        ),
        (
            ("base", "benchmark.rewards.clipscore.model=./no", "--benchmark", "tiny"),
            "no' to load a model from",
        ),
        (("base", "modl=sd3", "--benchmark", "tiny"), "did you mean 'model'"),
        (("base", "--benchmark", "tiny", "--output", "/proc/x"), "--output /proc/x cannot be written"),
    ],
)
def test_a_wrong_request_ends_before_anything_is_drawn(
    marble: Callable,
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("marble_cli.evaluate.score.Evaluator.draw", None)
    shown = marble("bench", *arguments)
    assert shown.code == 2, shown.err
    assert said in shown.err
    assert "Traceback" not in shown.err
    assert not (tmp_path / "bench").exists()
