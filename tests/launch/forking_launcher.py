"""Run `marble` with every process of its local launcher as a fork of the launcher, instead of an interpreter.

Arguments: those of `marble`. The launcher and its processes are otherwise as they are: parent and children,
with their own variables, sessions, signals and exit codes.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from typing import Any

from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

from marble_cli.cli.app import main

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGQUIT)


class Fork:
    """A child process, with those methods of `subprocess.Popen` that the elastic launcher uses."""

    def __init__(self, pid: int) -> None:
        self.pid, self.returncode = pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a rank", timeout)
            time.sleep(0.005)
        return code


def fork(self: SubprocessHandler, command: tuple[str, ...], environ: dict[str, str]) -> Any:
    """Start `python -m marble_cli ARGUMENTS` in the state in which an interpreter would begin."""
    assert command[:3] == (sys.executable, "-m", "marble_cli"), command
    if pid := os.fork():
        return Fork(pid)
    os.setsid()
    os.closerange(3, 1024)
    for number in STOPS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environ)
    for logger in (logging.getLogger(name) for name in ("marble", "torch.distributed")):
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
    sys.argv = ["marble", *command[3:]]
    main()
    raise AssertionError("a rank ends its process")


SubprocessHandler._popen = fork  # type: ignore[method-assign]
main()
