"""`marble train --multirun`: what is refused, what is printed, and a sweep of real runs."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from marble_cli.metrics.jsonl import read_rows
from marble_cli.sweep.record import read_sweep
from tests.distributed.processes import forks
from tests.scripts.smallest import FEWER

REWARDS = "rewards=[colorfulness,compressibility]"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["balance=marble,mgad"], "cell balance=mgad: balance=mgad: there is no such choice; did you mean"),
        (["balance.floor=0,0.9"], "cell balance.floor=0.9: balance.floor=0.9: 2 rewards cannot each have"),
        (["balance.flor=0,0.9"], "there is no key 'balance.flor'; did you mean 'balance.floor'"),
        (["balance.floor=0.1"], "no override gives several values"),
        (["trainer.seed=0,1", "--resume", "nowhere"], "cell trainer.seed=0: "),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_a_sweep_that_cannot_run_is_one_message(
    marble: Callable, tmp_path: Path, words: list[str], said: str, dry: bool
) -> None:
    shown = marble("train", "-m", REWARDS, *words, *(["--dry-run"] if dry else []))
    assert shown.code == 2
    assert said in shown.err
    assert "Traceback" not in shown.err
    assert list(tmp_path.iterdir()) == []


def test_several_values_without_the_option_name_it(marble: Callable) -> None:
    shown = marble("train", "trainer.seed=0,1")
    assert shown.code == 2
    assert "--multirun starts a run for each" in shown.err


def test_processes_of_torchrun_cannot_sweep(marble: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(os, "_exit", sys.exit)
    shown = marble("train", "-m", REWARDS, "trainer.seed=0,1")
    assert shown.code == 2
    assert "--multirun starts the processes of every cell itself" in shown.err


def test_print_config_prints_every_cell(marble: Callable) -> None:
    shown = marble("train", "-m", REWARDS, "balance.floor=0,0.1", "run.dir=s", "--print-config")
    assert shown.code == 0
    trees = list(yaml.safe_load_all(shown.out))
    assert [tree["balance"]["floor"] for tree in trees] == [0.0, 0.1]
    assert [Path(tree["run"]["dir"]).name for tree in trees] == ["balance.floor=0", "balance.floor=0.1"]


def test_dry_run_prints_the_plan_of_every_cell(marble: Callable, tmp_path: Path) -> None:
    words = ("preset=tiny", *FEWER, REWARDS, "rollout.group_size=2,5", "run.dir=s", "run.name=wide")
    shown = marble("train", "--multirun", *words, "--dry-run")
    assert shown.code == 0, shown.err
    parts = shown.out.split("cell ")
    assert [part.splitlines()[0] for part in parts[1:]] == [
        "1 of 2: rollout.group_size=2",
        "2 of 2: rollout.group_size=5",
    ]
    assert "24 prompts x 2 = 48" in parts[1]
    assert "24 prompts x 5 = 120" in parts[2]
    assert list(tmp_path.iterdir()) == []
    job = marble("train", "--multirun", *words, "launcher=slurm", "--dry-run").out
    assert "#SBATCH --array=0-1" in job
    assert f"  {tmp_path}/s/rollout.group_size=5\n" in job


@pytest.fixture
def forked_cells(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every cell in a fork instead of an interpreter of its own."""
    python = tmp_path_factory.mktemp("forked") / "python"
    forks().write_python(python)
    monkeypatch.setattr(sys, "executable", str(python))


@pytest.mark.usefixtures("forked_cells")
def test_a_sweep_of_real_runs_takes_another_cell_and_skips_the_one_that_is_done(
    marble: Callable, base_overrides: list[str], tmp_path: Path
) -> None:
    words = [*base_overrides[:-2], "run.dir=s", "trainer.steps=1", "trainer.eval_every=1"]
    first = marble("train", "--multirun", *words, "trainer.seed=choice(0)")
    assert first.code == 0, first.err
    second = marble("train", "--multirun", *words, "trainer.seed=0,1")
    assert second.code == 0, second.err
    assert second.out.startswith("cell 1 of 2: trainer.seed=0: done\ncell 2 of 2: trainer.seed=1\neval")
    table = second.out[second.out.index("joint improvement") :]
    for cell in read_sweep(tmp_path / "s").cells:
        rows = read_rows(tmp_path / "s" / cell.name / "metrics.jsonl")
        assert [row["step"] for row in rows] == [0, 1, 1]
        assert cell.name in table
