"""Run the cells of a sweep on this machine one after another, each in a process of its own."""

import codecs
import logging
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from types import FrameType

from rich.console import Console

from marble_cli.balance.registry import build_for
from marble_cli.config.compose import dump
from marble_cli.config.counts import processes
from marble_cli.config.enums import LauncherName
from marble_cli.errors import RequestError
from marble_cli.files import check_inside, check_writable
from marble_cli.interrupts import EXIT_CODES
from marble_cli.launch.local import PARENT, check_one_machine
from marble_cli.lock import RunLock
from marble_cli.plan.checks import check_geometry
from marble_cli.sweep.cells import PlannedCell, PlannedSweep, naming
from marble_cli.sweep.record import NAME, Sweep
from marble_cli.sweep.results import tables

log = logging.getLogger("marble")

TAIL = 1 << 14  # bytes at the end of a process's standard error that are searched for its message
MESSAGE = b"marble: "  # how the message of an error begins


def check_cells(planned: PlannedSweep, resume: str) -> list[PlannedCell]:
    """Check every cell before any is started; return those that are not done.

    Raises:
        RequestError: the sweep's folder cannot be written, or a cell cannot run; the message names it.
    """
    check_writable(planned.sweep.folder, "run.dir=")
    check_inside(planned.sweep.folder, (NAME, *(cell.name for cell in planned.cells)))
    waiting = []
    for cell in planned.cells:
        launcher, first = cell.config.launcher, planned.cells[0].config.launcher
        with naming(cell.name):
            if launcher.name is not first.name:
                raise RequestError("launcher is swept. Expected the same for all cells.")
            if launcher.name is LauncherName.local:
                check_one_machine(launcher)
            check_geometry(cell.config.rollout, cell.config.trainer, processes(launcher))
            build_for(cell.config.balance, cell.config.rewards)
            if not planned.is_done(cell, resume):
                waiting.append(cell)
    return waiting


def announce(planned: PlannedSweep, number: int, *, done: bool) -> None:
    """Print the heading of a cell, by its number from 1."""
    name = planned.cells[number - 1].name
    print(f"cell {number} of {len(planned.cells)}: {name}{': done' if done else ''}", flush=True)


def print_results(sweep: Sweep) -> None:
    """Print what became of the cells, and how to see more."""
    for table in tables(sweep):
        Console(highlight=False).print("", table)
    print(f"\nreport: marble report {shlex.quote(str(sweep.folder))}")


def run_sweep(planned: PlannedSweep, resume: str) -> int:
    """Run the cells that are not done; return the exit code: 0, 1 if a cell failed, 130 or 143 if stopped.

    A cell that fails is recorded, and the others run. The closing table is printed in any case.

    Raises:
        RequestError: a cell cannot run, which is found before any is started, or the folder is in use.
    """
    sweep, waiting = planned.sweep, check_cells(planned, resume)
    sweep.folder.mkdir(parents=True, exist_ok=True)
    with RunLock(sweep.folder) as lock, tempfile.TemporaryDirectory() as folder, SignalRelay() as relay:
        lock.acquire()
        sweep.write()
        for number, cell in enumerate(planned.cells, 1):
            if relay.exit_code is not None:
                break
            done = cell not in waiting
            announce(planned, number, done=done)
            if done:
                continue
            file = Path(folder) / "config.yaml"
            file.write_text(dump(cell.config), encoding="utf-8")
            command = [sys.executable, "-m", "marble_cli", "train", "--config-name", str(file)]
            failure = relay.run([*command, "--resume", cell.resume(resume)])
            if relay.exit_code is None:
                sweep.failures.pop(cell.name, None)
            if failure is not None:
                sweep.failures[cell.name] = failure
                log.warning("cell %s failed: %s", cell.name, failure)
            sweep.write()
    print_results(sweep)
    if relay.exit_code is not None:
        return relay.exit_code
    return 1 if any(cell.name in sweep.failures for cell in planned.cells) else 0


class SignalRelay:
    """Run one process at a time, and pass stop signals on to it; a second Ctrl+C kills it.

    The process has a session of its own, so that a Ctrl+C on the terminal reaches it once, through here.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None  # of the first stop signal
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "SignalRelay":
        self.previous = {number: signal.signal(number, self._handle) for number in EXIT_CODES}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        hard = self.exit_code is not None and number == signal.SIGINT
        self.exit_code = self.exit_code or EXIT_CODES[signal.Signals(number)]
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL if hard else number)
        if hard:
            raise KeyboardInterrupt

    def run(self, command: Sequence[str]) -> str | None:
        """Run a command to its end; return why it failed, None if it succeeded or was stopped.

        `exit_code` is set if a signal stopped it, also one that was sent to the process alone.
        """
        environment = os.environ | {PARENT: str(os.getpid())}
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, env=environment, start_new_session=True
        )
        if self.exit_code is not None:  # a signal came before there was a process to pass it on to
            self.process.send_signal(signal.SIGTERM)
        tail = bytearray()
        reader = Thread(target=_copy, args=(self.process, tail), daemon=True)
        reader.start()
        code = self.process.wait()
        self.process = None
        reader.join(1)  # a process that this one left behind may hold the other end
        if self.exit_code is None and code in EXIT_CODES.values():
            self.exit_code = code
        return None if self.exit_code is not None or code == 0 else _reason(code, bytes(tail))


def _copy(process: "subprocess.Popen[bytes]", tail: bytearray) -> None:
    """Copy a process's standard error to this one's, and keep its end in `tail`."""
    assert process.stderr is not None
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with process.stderr as stream:
        while chunk := os.read(stream.fileno(), TAIL):
            sys.stderr.write(decoder.decode(chunk))
            sys.stderr.flush()
            tail += chunk
            del tail[:-TAIL]


def _reason(code: int, tail: bytes) -> str:
    """Return the last message in the end of a process's standard error, or say how the process ended."""
    if code < 0:
        return f"its process was killed by {signal.Signals(-code).name}"
    messages = [line for line in tail.splitlines() if line.startswith(MESSAGE)]
    text = messages[-1].removeprefix(MESSAGE).decode(errors="replace") if messages else "no message"
    return f"{text} (exit code {code})"
