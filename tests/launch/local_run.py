"""A run of two processes that the local launcher starts."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from marble_cli.config.compose import dump, load_resolved
from marble_cli.config.schema import RunConfig
from tests.distributed.processes import forks, inside, step, wait_for
from tests.fork_server import Program

SETTINGS = ("trainer.steps=60", "trainer.checkpoint_every=1", "trainer.keep_last=1", "rollout.steps=2")


class Run:
    """A run of two processes, whose working directory is a folder of their own."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.folder, self.home = Path(config.run.dir), folder
        self.config, self.log = folder / "config.yaml", folder / "log"
        self.config.write_text(dump(config))

    def arguments(self, *more: str) -> list[object]:
        return ["train", "--config-name", self.config, "--nproc", "2", *more]

    def start(self, *more: str) -> "subprocess.Popen[bytes] | Program":
        command = [sys.executable, "-m", "marble_cli", *map(str, self.arguments(*more))]
        with self.log.open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.home, start_new_session=True)
        self.launcher = process.pid
        return process

    def ranks(self) -> list[int]:
        return sorted(pid for pid, parent in inside(self.home).items() if parent == self.launcher)

    def reach(self, target: int, process: "subprocess.Popen[bytes] | Program") -> None:
        def there() -> bool:
            assert process.poll() is None, self.log.read_text()
            return step(self.folder) >= target

        wait_for(there, f"step {target}")

    def assert_nothing_left(self) -> None:
        wait_for(lambda: not inside(self.home), f"the end of {inside(self.home)}", 10)


class ForkedRun(Run):
    """The same in forks: launcher and processes are what they are, and import nothing."""

    def start(self, *more: str) -> Program:
        command = [Path(__file__).with_name("forking_launcher.py"), *self.arguments(*more)]
        program = forks().start(command, os.environ, self.home, out=self.log, err=self.log)
        self.launcher = program.pid
        return program


@pytest.fixture
def run(run_config: Callable[..., RunConfig], tmp_path: Path) -> Iterator[Run]:
    started = Run(run_config(*SETTINGS, f"run.dir={tmp_path / 'run'}"), tmp_path)
    yield started
    for pid in inside(tmp_path):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def forked_run(run: Run) -> ForkedRun:
    """The run of `run`, in forks."""
    return ForkedRun(load_resolved(run.config), run.home)
