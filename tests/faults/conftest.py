"""Provide undisturbed runs to compare with, a faulty reward, and the record of measured faults."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import cache
from pathlib import Path

import pytest

from tests.faults.job import Job

RECORDS = "MARBLE_FAULT_RECORDS"  # a file; scripts/faults.py names it
STEPS = 150
SETTINGS = (
    f"trainer.steps={STEPS}", "trainer.checkpoint_every=4", "trainer.keep_last=3", "trainer.eval_every=10",
    "trainer.eval_prompts=1",
    "balance.refresh_every=3", "rollout.groups=4",
)  # fmt: skip
REWARD_STEPS = 60
REWARD_SETTINGS = (
    f"trainer.steps={REWARD_STEPS}", "trainer.checkpoint_every=4", "trainer.eval_every=0",
    "balance.refresh_every=3",
    "rollout.groups=4", "rollout.batch_size=12",
    "+rewards.faulty={plugin: faulty, timeout: 2, max_failed: 0.2}",
)  # fmt: skip

JobMaker = Callable[..., Job]
FaultRecorder = Callable[[str, int, int | None, str, str], None]


@pytest.fixture
def record_fault() -> FaultRecorder:
    """A function that records a fault: repetitions, repeated steps, the outcome and the short test."""
    began = time.monotonic()

    def record(fault: str, times: int, lost: int | None, outcome: str, short: str) -> None:
        row = {"fault": fault, "times": times, "lost": lost, "outcome": outcome, "short": short}
        row |= {"date": date.today().isoformat(), "seconds": round(time.monotonic() - began)}
        print(json.dumps(row))
        if file := os.environ.get(RECORDS):
            with Path(file).open("a") as stream:
                stream.write(json.dumps(row) + "\n")

    return record


@pytest.fixture(scope="session")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a run that has the faulty reward installed."""
    source = shutil.copytree(Path(__file__).parent / "plugin", tmp_path_factory.mktemp("plugin") / "source")
    site = source.parent / "site"
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target")
    subprocess.run([sys.executable, *pip, str(site), str(source)], check=True)
    return {"PYTHONPATH": str(site)}


@pytest.fixture
def job(base_overrides: list[str], tmp_path: Path) -> JobMaker:
    """A function of settings and the number of processes that makes a run of the test's own."""

    def make(*more: str, processes: int = 1, environ: dict[str, str] | None = None, name: str = "run") -> Job:
        return Job(tmp_path / name, [*base_overrides, *more], processes, environ)

    return make


@pytest.fixture(scope="session")
def undisturbed(
    base_overrides: list[str], tmp_path_factory: pytest.TempPathFactory, faulty: dict[str, str]
) -> Callable[[tuple[str, ...], int], Job]:
    """A function of settings and a number of processes that returns such a finished run, made once."""

    @cache
    def make(settings: tuple[str, ...], processes: int) -> Job:
        run = tmp_path_factory.mktemp("undisturbed") / "run"
        made = Job(run, [*base_overrides, *settings], processes, faulty)
        made.finish()
        return made

    return make
