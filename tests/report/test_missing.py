"""A run that lacks parts gets a report that says what is missing."""

import json
from pathlib import Path
from typing import Any

import pytest

from marble_cli.errors import RequestError
from marble_cli.report.page import report
from marble_cli.run.train import train
from tests.conftest import RunConfigMaker
from tests.report.conftest import Maker, evaluation, training
from tests.report.page import Page

OLD = [evaluation(0, interval=False), training(1), evaluation(2, interval=False)]
ONE = ("colorfulness",)
CASES: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "nothing yet": (
        [],
        ["has no finished training step", "No evaluation is recorded", "No shares are recorded"],
    ),
    "only an evaluation": (
        [evaluation(0)],
        ["has no finished training step", "it has had one evaluation so far"],
    ),
    "a single step": ([training(1)], ["no verdict on any reward", "Fewer than two evaluations"]),
    "an old run": (OLD, ["No intervals are recorded", "has no pictures to compare"]),
    "one reward": (
        [evaluation(0, rewards=ONE), training(1, ONE), evaluation(1, rewards=ONE)],
        ["A single reward has none to be drawn against", "No pairwise cosines"],
    ),
    "bare rows": (
        [{"step": 1, "phase": "train"}, {"step": 1, "phase": "eval"}],
        ["No training step is finished"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_page_says_what_is_missing(make_run: Maker, case: str) -> None:
    rows, said = CASES[case]
    overrides = ("~rewards.compressibility",) if case == "one reward" else ()
    folder = make_run("run", rows, *overrides)
    if case == "only an evaluation":
        (folder / "samples" / "step-00000000").mkdir(parents=True)
        (folder / "samples" / "step-00000000" / "samples.json").write_text("damaged")
        said = ["has no finished training step", "its evaluations kept none"]
    words = Page(report([folder])).words
    for sentence in said:
        assert sentence in words, sentence


def test_a_folder_without_a_configuration_and_with_damaged_files(make_run: Maker) -> None:
    folder = make_run("run", [evaluation(0), training(1), evaluation(2)])
    (folder / "config.yaml").write_text("rewards: [")
    (folder / "report.json").write_text(json.dumps({"rewards": ["no"]}))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "pha')
    page = Page(report([folder]))
    assert "The settings are unknown" in page.words
    assert "report.json is not what marble eval writes" in page.words
    assert "The last line of metrics.jsonl is cut short" in page.words
    assert page.row("colorfulness", "▲ rose")
    assert str(folder) not in page.source


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, make_run: Maker) -> None:
    with pytest.raises(RequestError, match="holds no metrics"):
        report([tmp_path])
    folder = make_run("run", [training(1)])
    (folder / "metrics.jsonl").write_text("oops\n" * 2)
    with pytest.raises(RequestError, match="line 1"):
        report([folder])


def test_a_real_run(run_config: RunConfigMaker, tmp_path: Path) -> None:
    settings = ("trainer.eval_every=1", "logging.images_every=1", "trainer.steps=1", f"run.dir={tmp_path}")
    watched = "+eval_rewards.watched={plugin: colorfulness}"
    assert train(run_config(*settings, watched), resume="never") == 0
    page = Page(report([tmp_path]))
    assert page.row("finished steps")[1] == "1 of 1"
    assert page.row("watched")[-1] == "watched"
    assert len(page.all("article")) == 6
    assert {e.attributes["src"][:23] for e in page.all("img") if e.attributes["src"]} == {
        "data:image/webp;base64,"
    }
    assert page.row("ended by") == ["ended by", "its last step"]
