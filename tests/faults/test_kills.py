"""SIGKILL at random instants, ten times in one run, leaves no trace; nor does the number of processes."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig
from marble_cli.metrics.jsonl import read

pytestmark = pytest.mark.long

KILLS = 10
CLOCKS = ("time/", "throughput/", "balance/solve_seconds")
SETTINGS = (
    "trainer.steps=150", "trainer.checkpoint_every=1", "trainer.eval_every=10", "balance.refresh_every=3",
    "rollout.groups=4", "trainer.eval_prompts=1", "launcher.max_restarts=0",
)  # fmt: skip


class Job:
    """A run of `marble train` in one or several processes, in a session of its own."""

    def __init__(self, config: RunConfig, processes: int, folder: Path) -> None:
        self.run, self.config = Path(config.run.dir), folder / f"{Path(config.run.dir).name}.yaml"
        self.config.write_text(dump(config))
        self.log = self.config.with_suffix(".log")
        command = [sys.executable, "-m", "marble_cli", "train", "--config-name", str(self.config)]
        self.command = [*command, "--nproc", str(processes)]
        self.processes = processes

    def start(self) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True
            )

    def step(self) -> int:
        file = self.run / "metrics.jsonl"
        return max((row["step"] for row in read(file)), default=0) if file.is_file() else 0


@pytest.mark.parametrize("processes", [1, 2])
def test_ten_kills_leave_no_trace(
    run_config: Callable[..., RunConfig], tmp_path: Path, processes: int
) -> None:
    whole, killed = (
        Job(run_config(*SETTINGS, f"run.dir={tmp_path / name}"), processes, tmp_path)
        for name in ("whole", "killed")
    )
    assert whole.start().wait(300) == 0, whole.log.read_text()
    chance = random.Random(processes)
    for _ in range(KILLS):
        before, process = killed.step(), killed.start()
        kill_after(killed, process, before + 1 + chance.randrange(6), chance)
    assert killed.start().wait(300) == 0, killed.log.read_text()
    assert rows(killed.run) == rows(whole.run)
    assert weights(killed.run) == weights(whole.run)


def kill_after(job: Job, process: "subprocess.Popen[bytes]", step: int, chance: random.Random) -> None:
    """Kill the process, or one of its ranks, a moment after `step` is recorded; no other may be left."""
    deadline = time.monotonic() + 120
    while job.step() < step:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.15))
    if job.processes == 1:
        process.kill()
        assert process.wait(30) == -signal.SIGKILL
        return
    ranks = ranks_of(process.pid)
    assert len(ranks) == job.processes
    os.kill(chance.choice(sorted(ranks)), signal.SIGKILL)
    assert process.wait(120) != 0
    while left := {pid for pid in ranks if Path(f"/proc/{pid}").exists()}:
        assert time.monotonic() < deadline, f"processes are left: {left}"
        time.sleep(0.05)


def ranks_of(launcher: int) -> set[int]:
    """The processes of `marble train` that another one has started."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_text()
        except OSError:
            continue
        if parent == launcher and "marble_cli" in command:
            found.add(int(folder.name))
    return found


def rows(run: Path) -> list[dict[str, Any]]:
    return [
        {key: row[key] for key in row if not key.startswith(CLOCKS)} for row in read(run / "metrics.jsonl")
    ]


def weights(run: Path) -> dict[str, bytes]:
    folder = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    return {
        str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.safetensors"))
    }


def test_one_two_and_four_processes_train_alike(tmp_path: Path) -> None:
    """Ten steps of the embedded model; what counts bytes would turn a pixel's rounding into another advantage."""
    found = []
    for processes in (1, 2, 4):
        run = tmp_path / str(processes)
        command = [
            sys.executable, "-m", "marble_cli", "train", "preset=tiny", "rewards=[colorfulness,clipscore]", "balance=marble",
            "trainer.steps=10", "rollout.groups=4", "rollout.group_size=4", "rollout.batch_size=4", "trainer.micro_batch_size=4",
            "trainer.eval_every=0", "logging.wandb.mode=disabled", f"run.dir={run}", "--nproc", str(processes),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found.append(rows(run))
    rewards = [f"reward/{name}/mean" for name in ("clipscore", "colorfulness")]
    for others in found[1:]:
        for row, other in zip(found[0], others, strict=True):
            for key in ("loss/policy", "grad_norm"):
                assert other[key] == pytest.approx(row[key], rel=1e-5), (row["step"], key)
            for key in rewards:  # a pixel may be rounded otherwise
                assert other[key] == pytest.approx(row[key], rel=1e-4), (row["step"], key)
