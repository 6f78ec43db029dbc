"""However a run ends, none of its processes is left: rank, isolated reward's server or W&B service."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.environment import link_packages, make_venv
from tests.faults.conftest import REWARD_SETTINGS, FaultRecorder, JobMaker
from tests.faults.job import Job
from tests.faults.test_rewards import ATTEMPTS, told

pytestmark = pytest.mark.long

LONG = ("trainer.steps=100000", "rewards.faulty.isolated=true", "logging.wandb.mode=offline")
EXITS = {"done": 0, "error": 1, "SIGTERM": 143, "Ctrl+C": 130, "SIGKILL": None, "SIGKILL of the launcher": -9}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a run that finds the faulty reward in an isolated environment."""
    root = tmp_path_factory.mktemp("home")
    source = shutil.copytree(Path(__file__).parent / "plugin", root / "plugin")
    make_venv(root / "rewards" / "faulty" / "venv", link_packages(root / "site"))
    pip = {"PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "PIP_QUIET": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    variables = {"MARBLE_HOME": str(root)}
    command = [sys.executable, "-m", "marble_cli", "rewards", "install", "faulty", "--from", str(source)]
    subprocess.run(command, env={**os.environ, **variables, **pip}, check=True)
    return variables


@pytest.mark.parametrize("processes", [1, 2])
def test_no_process_is_left_however_a_run_ends(
    job: JobMaker, home: dict[str, str], record_fault: FaultRecorder, processes: int
) -> None:
    slowest = 0.0
    exits = EXITS if processes > 1 else {how: code for how, code in EXITS.items() if "launcher" not in how}
    for how, code in exits.items():
        run = job(*REWARD_SETTINGS, *LONG, processes=processes, environ=home, name=how)
        process = (
            run.start(**told({30: ("raises", ATTEMPTS)} if how == "error" else {}, 1))
            if how != "done"
            else run.start("trainer.steps=30")
        )
        run.wait(process, lambda run=run: run.step() >= 3)  # type: ignore[misc]
        check_company(run)
        if how == "SIGTERM":
            process.terminate()
        elif how == "Ctrl+C":
            os.killpg(process.pid, signal.SIGINT)
        elif how == "SIGKILL":
            os.kill(process.pid if processes == 1 else run.ranks(process.pid)[-1], signal.SIGKILL)
            if processes == 1:
                code = -signal.SIGKILL
        elif how == "SIGKILL of the launcher":
            process.kill()
        began = time.monotonic()
        run.end(process, code)
        if how not in ("done", "error"):
            slowest = max(slowest, time.monotonic() - began)
    whose = "the only process" if processes == 1 else f"the launcher or one of {processes} processes"
    record_fault(
        f"a run with an isolated reward and W&B is done, fails, gets SIGTERM or Ctrl+C, or {whose} SIGKILL",
        len(exits), None,
        "no process is left: rank, reward's server or W&B's service; "
        f"{slowest:.0f} s after the signal at most",
        "e2e/test_served_rewards.py",
    )  # fmt: skip


def check_company(run: Job) -> None:
    """It has company that could be left: else the test would find nothing whatever happened."""
    commands = list(run.alive().values())
    assert sum("rewards serve" in command for command in commands) == 1, commands
    assert any("wandb" in command for command in commands), commands
