"""A run of two processes that the local launcher starts."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig
from tests.distributed.processes import marked, step, wait_for

SETTINGS = ("trainer.steps=60", "trainer.checkpoint_every=1", "trainer.keep_last=1")


class Run:
    """A run of two processes, identified by a mark in their environment."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.folder, self.mark = Path(config.run.dir), f"MARBLE_TEST={folder}"
        self.config, self.log = folder / "config.yaml", folder / "log"
        self.config.write_text(dump(config))

    def start(self, *more: str) -> "subprocess.Popen[bytes]":
        name, _, value = self.mark.partition("=")
        command = [
            sys.executable,
            "-m",
            "marble_cli",
            "train",
            "--config-name",
            self.config,
            "--nproc",
            "2",
            *more,
        ]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, name: value}, start_new_session=True
            )

    def ranks(self) -> list[int]:
        return sorted(pid for pid, command in marked(self.mark).items() if "--resume" in command)

    def reach(self, target: int, process: "subprocess.Popen[bytes]") -> None:
        def there() -> bool:
            assert process.poll() is None, self.log.read_text()
            return step(self.folder) >= target

        wait_for(there, f"step {target}")

    def assert_nothing_left(self) -> None:
        wait_for(lambda: not marked(self.mark), f"the end of {marked(self.mark)}", 10)


@pytest.fixture
def run(run_config: Callable[..., RunConfig], tmp_path: Path) -> Iterator[Run]:
    started = Run(run_config(*SETTINGS, f"run.dir={tmp_path / 'run'}"), tmp_path)
    yield started
    for pid in marked(started.mark):
        os.kill(pid, signal.SIGKILL)
