"""Handle the signals that stop a run, and record why its processes ended.

A signal stops a run after the current step, and the run then writes a checkpoint.
"""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

EXIT_FILE = "MARBLE_EXIT_FILE"  # environment variable: path of the file with a job's exit code
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}
# Signals whose handlers no library or plugin may change.
PRESERVED = (*EXIT_CODES, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE)

_ctrl_c = threading.Event()


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt for any error that follows Ctrl+C, as C++ turns that exception into others."""
    _ctrl_c.clear()
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else the process ignores or handles it
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    except Exception as error:
        if _ctrl_c.is_set():
            raise KeyboardInterrupt from error
        raise
    finally:
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _ctrl_c.set()
    raise KeyboardInterrupt


class Interrupt:
    """Catch the signals that stop a run; a second Ctrl+C stops the process at once.

    `exit_code` is None until a signal arrives.
    In processes forked inside the block, such as workers of multiprocessing.Pool, the previous handlers
    apply.
    """

    active: ClassVar[list["Interrupt"]] = []

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._previous: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> "Interrupt":
        self._previous = {number: signal.getsignal(number) for number in EXIT_CODES}
        self.active.append(self)
        self.arm()
        return self

    def arm(self) -> None:
        """Install the handlers; call again if a library may have replaced them."""
        for number in EXIT_CODES:
            signal.signal(number, self._handle)

    def disarm(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # forked by C code, without Python's hook
            self.disarm()
            os.kill(os.getpid(), number)
            return
        if self.exit_code is not None and number == signal.SIGINT:
            _interrupt(number, frame)
        self.exit_code = EXIT_CODES[signal.Signals(number)]

    def __exit__(self, *error: object) -> None:
        self.active.remove(self)
        self.disarm()


class _Fork(threading.local):
    """Keep the signals that arrive while this thread forks until the child has the previous handlers.

    Python forgets what arrives in a child before its interpreter is ready. A pool that was ended that early
    would wait forever for its worker.
    """

    mask: Iterable[int] | None = None

    def block(self) -> None:
        if Interrupt.active:
            self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, EXIT_CODES)

    def unblock(self) -> None:
        if self.mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)
            self.mask = None

    def disarm_and_unblock(self) -> None:
        if Interrupt.active:
            signal.set_wakeup_fd(-1)  # the descriptor would wake the parent process
            Interrupt.active[0].disarm()
            Interrupt.active.clear()
        self.unblock()


_fork = _Fork()
os.register_at_fork(
    before=_fork.block, after_in_parent=_fork.unblock, after_in_child=_fork.disarm_and_unblock
)


@dataclass
class HandlerReport:
    """Whether Ctrl+C was pressed inside `preserved_handlers`, and which handlers were changed."""

    interrupted: bool = False
    changed: tuple[str, ...] = ()


@contextmanager
def preserved_handlers() -> Iterator[HandlerReport]:
    """Restore the main thread's signal handlers and signal mask after the block."""
    report = HandlerReport()
    before = {number: signal.getsignal(number) for number in PRESERVED}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    ctrl_c = before[signal.SIGINT]

    def note_ctrl_c(number: int, frame: FrameType | None) -> None:
        report.interrupted = True
        if callable(ctrl_c):
            ctrl_c(number, frame)

    expected = before | ({signal.SIGINT: note_ctrl_c} if callable(ctrl_c) else {})
    if callable(ctrl_c):
        signal.signal(signal.SIGINT, note_ctrl_c)
    try:
        yield report
    finally:
        after = {number: signal.getsignal(number) for number in PRESERVED}
        report.changed = tuple(number.name for number in PRESERVED if after[number] != expected[number])
        if signal.pthread_sigmask(signal.SIG_SETMASK, mask) != mask:
            report.changed += ("the signals that are blocked",)
        for number, handler in before.items():
            if handler is not None:  # None: a handler of C code, which Python cannot restore
                # Python does not see changes that C libraries make, so restore unchanged handlers too.
                signal.signal(number, handler)


@contextmanager
def blocked_signals() -> Iterator[None]:
    """Block the stop signals for every process that is started inside the block.

    SLURM signals all processes of a job, but the current step still needs its reward servers and W&B's
    service. These end with the run that started them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, EXIT_CODES)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def record_exit_code(code: int) -> None:
    """Write this process's exit code into the file named by `EXIT_FILE`, for the launcher of the job.

    Only the first process that fails by itself writes the file; its code is the job's. If the file cannot be
    written, the launcher uses the exit codes of the processes.
    """
    if code and (file := os.environ.get(EXIT_FILE)):
        with suppress(OSError), Path(file).open("x", encoding="ascii") as stream:
            stream.write(f"{code}\n")


def recorded_exit_code(file: Path) -> int | None:
    """Return the exit code in `file`, or None if there is none."""
    text = file.read_text(encoding="ascii") if file.is_file() else ""
    return int(text) if text.strip().isdigit() else None
