"""The cells of a sweep: where they are, what they are called, and which are done."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from marble_cli.config.schema import RunConfig
from marble_cli.errors import RequestError
from marble_cli.metrics.history import History
from marble_cli.sweep.cells import PlannedSweep, plan_sweep
from marble_cli.sweep.record import read_sweep
from marble_cli.sweep.results import read_results, worst_reward
from tests.random_runs import write_random_run

FLOORS = ["rewards=[colorfulness,compressibility]", "balance.floor=0,0.1"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def planned(*words: str, config_name: str | None = None) -> PlannedSweep:
    return plan_sweep([*FLOORS, *words], config_name)


def test_every_cell_has_a_folder_and_a_name_below_the_sweep(tmp_path: Path) -> None:
    sweep = planned("run.dir=runs/it's")
    assert sweep.sweep.folder == tmp_path / "runs" / "it's"
    assert [cell.config.run.dir for cell in sweep.cells] == [
        f"{tmp_path}/runs/it's/balance.floor={floor}" for floor in ("0", "0.1")
    ]
    assert [cell.config.run.name for cell in sweep.cells] == [f"it's/balance.floor={f}" for f in ("0", "0.1")]
    assert [cell.config.balance.floor for cell in sweep.cells] == [0, 0.1]


def test_the_folder_without_a_name_is_that_of_the_same_command(tmp_path: Path) -> None:
    folder = planned().sweep.folder
    assert folder.parent == tmp_path / "runs"
    assert folder.name.startswith("sweep-balance.floor-")
    more = [FLOORS[0], "balance.floor=range(0,0.5,0.25)"]
    assert plan_sweep(more, None).sweep.folder == folder, "further values belong to the same sweep"
    assert planned("trainer.steps=3").sweep.folder != folder
    assert planned("launcher=slurm", "logging.images_every=3").sweep.folder == folder, (
        "it may move to a cluster"
    )
    named = planned("run.name=floors")
    assert named.sweep.folder == tmp_path / "runs" / "floors"
    assert named.cells[0].config.run.name == "floors/balance.floor=0"


def test_a_value_that_only_one_cell_has_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"^cell balance=mgad: .*did you mean 'mgda'"):
        plan_sweep([FLOORS[0], "balance=marble,mgad"], None)
    with pytest.raises(RequestError, match=r"^cell balance.floor=2: .*expected a number in \[0, 1\]"):
        plan_sweep([FLOORS[0], "balance.floor=0,2"], None)
    assert not list(tmp_path.iterdir())


def test_the_record_keeps_earlier_cells_and_failures(tmp_path: Path) -> None:
    first = planned("run.dir=s").sweep
    first.folder.mkdir()
    first.failures["balance.floor=0"] = "it broke"
    first.write()
    assert read_sweep(tmp_path / "s") == first
    sweep = plan_sweep([FLOORS[0], "balance.floor=0.1,0.2", "run.dir=s"], None)
    assert [cell.name for cell in sweep.cells] == ["balance.floor=0.1", "balance.floor=0.2"]
    assert [cell.name for cell in sweep.sweep.cells] == [f"balance.floor={f}" for f in ("0", "0.1", "0.2")]
    assert sweep.sweep.failures == {"balance.floor=0": "it broke"}


def test_a_folder_of_another_sweep_or_of_a_run_is_refused(tmp_path: Path) -> None:
    sweep = planned("run.dir=s").sweep
    sweep.folder.mkdir()
    sweep.write()
    with pytest.raises(RequestError, match="holds a sweep of balance.floor"):
        plan_sweep([FLOORS[0], "trainer.seed=0,1", "run.dir=s"], None)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    with pytest.raises(RequestError, match="holds a run"):
        planned("run.dir=run")


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"keys": []}', '{"keys": [], "cells": [{"name": "../x", "values": {}, "overrides": []}]}'],
)
def test_a_damaged_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(RequestError, match="sweep.json is not what"):
        read_sweep(tmp_path)


def test_cells_with_all_steps_are_done_and_cut_ones_continue(
    run_config: Callable[..., RunConfig],
    base_overrides: list[str],
    randomise: Callable[..., None],
    tmp_path: Path,
) -> None:
    words = [*base_overrides[:-2], "trainer.seed=0,1", "run.dir=s"]
    folder = tmp_path / "s" / "trainer.seed=0"
    folder.mkdir(parents=True)
    once = plan_sweep([*words, "trainer.steps=1"], None)
    write_random_run(once.cells[0].config, randomise)
    assert [once.is_done(cell, "auto") for cell in once.cells] == [True, False]
    longer = plan_sweep([*words, "trainer.steps=2"], None)
    assert [longer.is_done(cell, "auto") for cell in longer.cells] == [False, False]
    assert [cell.finished_steps() for cell in longer.cells] == [1, 0]
    once.sweep.failures["trainer.seed=0"] = "it broke in its last evaluation"
    assert not once.is_done(once.cells[0], "auto")
    other = str(folder / "checkpoints" / "step-00000001")
    assert [cell.resume(other) for cell in longer.cells] == ["auto", other]
    assert longer.cells[1].finished_steps(other) == 0, "a checkpoint of another run is none of its own"
    with pytest.raises(RequestError, match="--resume never"):
        longer.is_done(longer.cells[0], "never")
    changed = plan_sweep([*words, "optimizer.lr=0.5"], None)
    with pytest.raises(RequestError, match="optimizer.lr"):
        changed.is_done(changed.cells[0], "auto")


def test_results_are_those_of_the_last_evaluation(tmp_path: Path) -> None:
    sweep = planned("run.dir=s").sweep
    folder = tmp_path / "s" / "balance.floor=0"
    folder.mkdir(parents=True)
    rows = [
        {"step": 0, "phase": "eval", "reward/a/std": 2.0, "reward/b/std": 4.0},
        {"step": 3, "phase": "train", "reward/a/mean": 1.0, "reward/b/mean": 1.0},
        {
            "step": 3, "phase": "eval", "eval/joint_improvement": 0.25,
            "reward/a/change": -1.0, "reward/b/change": -1.2, "reward/watched/change": -9.0,
            "reward/watched/std": 1.0,
        },
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sweep.failures["balance.floor=0.1"] = "it broke"
    first, second = read_results(sweep)
    assert (first.steps, first.joint_improvement, first.worst) == (3, 0.25, ("a", -0.5))
    assert (second.steps, second.worst, second.failure) == (0, None, "it broke")
    assert worst_reward(History(train=rows[1:2], held_out=rows[:1])) is None
