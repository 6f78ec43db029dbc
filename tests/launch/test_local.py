"""The local launcher: restarts, signals, exit codes, and processes that end with it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from marble_cli.cli.app import app
from marble_cli.config.schema import RunConfig
from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import ConfigError, RequestError
from marble_cli.interrupts import EXIT_FILE, blocked_signals, record_exit_code, recorded_exit_code
from marble_cli.launch.local import _cause, _run_with_restarts
from marble_cli.metrics.jsonl import read_rows
from tests.distributed.processes import step, wait_for
from tests.launch.local_run import ForkedRun


def test_killed_process_restarts_the_run_and_a_signal_stops_it(forked_run: ForkedRun) -> None:
    run = forked_run
    process = run.start("trainer.steps=2000")
    run.reach(2, process)
    os.kill(run.ranks()[1], signal.SIGKILL)
    wait_for(lambda: "was killed by SIGKILL; restart 1 of 3" in run.log.read_text(), "a restart")
    run.reach(step(run.folder) + 2, process)
    assert len(run.ranks()) == 2
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 143
    run.assert_nothing_left()
    assert run.log.read_text().count("restart") == 1
    done = [row["step"] for row in read_rows(run.folder / "metrics.jsonl")]
    assert done == list(range(1, len(done) + 1))
    assert (run.folder / "checkpoints" / "latest").read_text() == f"step-{done[-1]:08d}\n"


def test_killed_launcher_ends_all_processes(forked_run: ForkedRun) -> None:
    run = forked_run
    process = run.start("trainer.steps=2000")
    run.reach(1, process)
    process.kill()
    process.wait()
    run.assert_nothing_left()


@pytest.mark.parametrize(
    ("failures", "cause"),
    [
        ([(1, 2)], (1, 2)),
        ([(0, 1), (1, -signal.SIGKILL)], (1, -signal.SIGKILL)),  # the surviving rank was reported first
        ([(0, 2), (1, -signal.SIGABRT)], (0, 2)),
        ([(1, -signal.SIGABRT), (0, 1)], (1, -signal.SIGABRT)),
        ([(0, 1), (1, -signal.SIGTERM)], (0, 1)),  # the launcher terminated the other rank
    ],
)
def test_cause_is_the_first_killed_rank(failures: list[tuple[int, int]], cause: tuple[int, int]) -> None:
    assert _cause(failures) == cause


def test_a_process_that_ends_without_a_message_is_named(
    run_config: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As by `os._exit(9)` in a plugin."""
    config, python = run_config(f"run.dir={tmp_path / 'run'}"), tmp_path / "python"
    config.launcher.nproc = 2
    python.write_text("#!/bin/sh\nexit 9\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "")  # torch's launcher sets it for the process
    assert _run_with_restarts(config, "auto", tmp_path / "config.yaml", tmp_path / "exit") == 9
    assert "ended with exit code 9 and no message" in caplog.text


def test_first_recorded_exit_code_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_exit_code(2)  # writes nothing: no launcher set EXIT_FILE
    file = tmp_path / "exit"
    monkeypatch.setenv(EXIT_FILE, str(file))
    assert recorded_exit_code(file) is None
    record_exit_code(0)
    assert not file.exists()
    record_exit_code(2)
    record_exit_code(143)
    assert recorded_exit_code(file) == 2


def test_blocked_signals_are_inherited_by_child_processes() -> None:
    with blocked_signals():
        helper = subprocess.Popen(["sleep", "60"])
    other = subprocess.Popen(["sleep", "60"])
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        helper.send_signal(number)
    other.send_signal(signal.SIGUSR1)
    assert other.wait(10) == -signal.SIGUSR1
    assert helper.poll() is None
    helper.kill()
    assert helper.wait(10) == -signal.SIGKILL


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(
            ConfigError, match="2 processes on .* see 1 GPUs. Expected one GPU per process: lower --nproc"
        ),
        Ranks(),
    ):
        raise AssertionError("joined")
    assert not Ranks("cpu").cuda


def test_local_launcher_with_several_nodes_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["train", "preset=tiny", f"run.dir={tmp_path}", "launcher.nodes=2"])
    assert isinstance(done.exception, RequestError)
    assert "launcher=local starts processes on this machine alone" in str(done.exception)
