"""Start processes for tests, and look at their results."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest

from marble_cli.metrics.jsonl import read_rows
from tests.fork_server import ForkServer, Program
from tests.once import shared_server

FACTORY: list[pytest.TempPathFactory] = []  # of this process, set by tests/conftest.py


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@cache
def forks() -> ForkServer:
    """Return the server of forks of this test run; tests/conftest.py leaves it."""
    return shared_server(FACTORY[0], "forks", sys.executable, os.environ)


def job(
    commands: Sequence[Sequence[object]], folders: Sequence[Path] | None = None
) -> list["subprocess.Popen[str] | Program"]:
    """Start one rank per command of this Python, each in its own one of `folders` if these are given.

    Modules and files run in forks of one process that has imported torch and diffusers.
    """
    world = str(len(commands))
    common = {**os.environ, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks: list[subprocess.Popen[str] | Program] = []
    for rank, (command, folder) in enumerate(zip(commands, folders or [None] * len(commands), strict=True)):
        environ = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        if command[0] in ("-m", "-W") or isinstance(command[0], Path):
            ranks.append(forks().start(command, environ, folder))
        else:
            ranks.append(
                subprocess.Popen(
                    [sys.executable, *map(str, command)], cwd=folder, env=environ, text=True,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )
            )  # fmt: skip
    return ranks


def ends(
    processes: Sequence["subprocess.Popen[str] | Program"], timeout: float = 120
) -> list[tuple[int, str, str]]:
    """Wait for the processes; return (exit code, standard output, standard error) of each."""
    try:
        answers = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *answer) for process, answer in zip(processes, answers, strict=True)]


def wait_for(condition: Callable[[], object], what: str, timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)  # a look may read all processes of the machine


def step(run: Path) -> int:
    """Return the last step that a run has recorded."""
    file = run / "metrics.jsonl"
    return max((row["step"] for row in read_rows(file)), default=0) if file.is_file() else 0


def weights(run: Path) -> dict[str, bytes]:
    """Return the tensor files of a run's latest checkpoint."""
    folder = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    return {
        str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.safetensors"))
    }


def marked(mark: str) -> dict[int, str]:
    """Return the commands of other processes whose environment contains `mark`, by process id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment, command = (
                (folder / "environ").read_text(errors="replace"),
                (folder / "cmdline").read_text(),
            )
        except OSError:
            continue
        if mark in environment and int(folder.name) != os.getpid():
            found[int(folder.name)] = command.replace("\0", " ")
    return found


def inside(folder: Path) -> dict[int, int]:
    """Return the parents of processes whose working directory is `folder`, by process id."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == folder:
                found[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    return found
