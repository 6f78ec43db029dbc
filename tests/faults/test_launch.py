"""Kills and signals of a run of several processes, each against the run that nothing disturbed."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from marble_cli.config.schema import RunConfig
from tests.distributed.nodes import train_on_nodes_without_a_shared_disk
from tests.distributed.processes import step, wait_for, weights
from tests.faults.conftest import FaultRecorder
from tests.faults.job import STARTED
from tests.launch.cluster import cluster, job, stopped_at_its_limit, submitted
from tests.launch.local_run import SETTINGS, Run, run

__all__ = ["cluster", "run"]  # fixtures
pytestmark = pytest.mark.long


def test_two_kills_in_one_command(
    run: Run, run_config: Callable[..., RunConfig], tmp_path: Path, record_fault: FaultRecorder
) -> None:
    (tmp_path / "other").mkdir()
    whole = Run(run_config(*SETTINGS, f"run.dir={tmp_path / 'whole'}"), tmp_path / "other")
    assert whole.start().wait(300) == 0, whole.log.read_text()
    process = run.start()
    ends = []
    for turn, target in enumerate((3, 20)):
        run.reach(target, process)
        os.kill(run.ranks()[turn], signal.SIGKILL)
        ends.append(step(run.folder))
        said = f"restart {turn + 1} of 3"
        wait_for(lambda said=said: said in run.log.read_text(), said)  # type: ignore[misc]
    assert process.wait(300) == 0, run.log.read_text()
    assert step(run.folder) == 60
    assert weights(run.folder) == weights(whole.folder)
    run.assert_nothing_left()
    starts = [int(after) for after in STARTED.findall((run.folder / "log.txt").read_text())][1:]
    lost = sum(max(0, end - start) for end, start in zip(ends, starts, strict=True))
    outcome = "the launcher starts all anew; exit code 0, the weights of the undisturbed run"
    record_fault("SIGKILL of one of 2 processes, in one command", 2, lost, outcome, "launch/test_local.py")


def test_no_restart_is_left(run: Run) -> None:
    process = run.start("launcher.max_restarts=0")
    run.reach(1, process)
    os.kill(run.ranks()[0], signal.SIGKILL)
    assert process.wait(120) == 1
    assert "process 0 was killed by SIGKILL. Continue the run" in run.log.read_text()
    run.assert_nothing_left()


@pytest.mark.parametrize("wandb", ["disabled", "offline"])
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_in_a_terminal(run: Run, times: int, wandb: str, record_fault: FaultRecorder) -> None:
    """It goes to the launcher's whole process group. Once: a checkpoint of the step; twice: at once."""
    process = run.start("trainer.steps=2000", f"logging.wandb.mode={wandb}")
    run.reach(2, process)
    if times == 2:
        os.kill(run.ranks()[1], signal.SIGSTOP)  # so the step never ends
    os.killpg(process.pid, signal.SIGINT)
    if times == 2:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
        os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    run.assert_nothing_left()
    said = run.log.read_text()
    assert "Traceback" not in said
    if times == 1:
        latest = (run.folder / "checkpoints" / "latest").read_text().strip()
        assert int(latest.removeprefix("step-")) == step(run.folder)
        assert "a checkpoint is written" in said
    else:
        assert "a checkpoint is written" not in said
    how, outcome = (("one", "a checkpoint of the step"), ("a second, while a step hangs", "the end at once"))[
        times - 1
    ]
    record_fault(
        f"Ctrl+C in the terminal of 2 processes, W&B {wandb}: {how}", 1, None,
        f"{outcome}, exit code 130, no process left",
        "launch/test_local.py",
    )  # fmt: skip


def test_ctrl_c_before_training(run: Run) -> None:
    process = run.start()
    wait_for(lambda: len(run.ranks()) == 2, "the processes")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    assert "Traceback" not in run.log.read_text()
    run.assert_nothing_left()


def test_torchrun(run_config: Callable[..., RunConfig], tmp_path: Path, base_overrides: list[str]) -> None:
    """Each process composes its own configuration, with the time in run.dir; the first one's counts."""
    overrides = [item for item in base_overrides if not item.startswith("run.")]
    command = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "marble_cli",
        "train",
        *overrides,
    ]
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_a_job_that_was_queued_again(
    cluster: Path, run_config: Callable[..., RunConfig], tmp_path: Path, record_fault: FaultRecorder
) -> None:
    """Under stand-ins for SLURM's commands; the weights are those of a job whose time sufficed."""
    runs = [tmp_path / "jobs" / name for name in ("whole", "stopped")]
    for folder in runs:
        submitted(run_config(*SETTINGS), folder)
    assert job(runs[0]).wait(300) == 0
    stopped_at_its_limit(cluster, runs[1])
    assert job(runs[1], restarts=1).wait(300) == 0
    assert weights(runs[1]) == weights(runs[0])
    outcome = (
        "SIGUSR1: a checkpoint, exit code 143, queued again; the weights of the undisturbed job "
        "(SLURM's commands stood in for)"
    )
    record_fault("a job of 2 processes reaches its time limit", 1, 0, outcome, "launch/test_slurm.py")


def test_nodes(
    run_config: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_fault: FaultRecorder,
) -> None:
    train_on_nodes_without_a_shared_disk(run_config, tmp_path, monkeypatch)
    outcome = (
        "the first node's checkpoint goes around; exchanged, they refuse, exit code 2, and say which is "
        "further on"
    )
    record_fault("two nodes share no disk", 2, 0, outcome, "distributed/test_agreement.py")
