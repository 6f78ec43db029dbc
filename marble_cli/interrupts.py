"""How a run is asked to stop, after the step under way and a checkpoint, and how its processes tell why they ended."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

EXIT_FILE = "MARBLE_EXIT_FILE"  # variable with the path of a file for the exit code of a job's processes
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}


KEPT = (*EXIT_CODES, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE)  # whose handlers are the program's own


class Interrupt:
    """While entered, `exit_code` is None until a signal asks the run to stop; a second Ctrl+C stops at once.

    A process that is forked meanwhile, such as a worker of multiprocessing.Pool, is no run: signals do to it what
    they did before.
    """

    entered: ClassVar[list["Interrupt"]] = []

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._previous: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> "Interrupt":
        self._previous = {number: signal.getsignal(number) for number in EXIT_CODES}
        self.entered.append(self)
        self.arm()
        return self

    def arm(self) -> None:
        """Handle the signals, once more if a library has set handlers of its own."""
        for number in EXIT_CODES:
            signal.signal(number, self._handle)

    def disarm(self) -> None:
        """Handle the signals as before."""
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # forked where Python did not see it
            self.disarm()
            os.kill(os.getpid(), number)
            return
        if self.exit_code is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.exit_code = EXIT_CODES[signal.Signals(number)]

    def __exit__(self, *error: object) -> None:
        self.entered.remove(self)
        self.disarm()


def _in_forked_child() -> None:
    if Interrupt.entered:
        signal.set_wakeup_fd(-1)  # it would wake the parent
        Interrupt.entered[0].disarm()
        Interrupt.entered.clear()


os.register_at_fork(after_in_child=_in_forked_child)


@dataclass
class Watch:
    """What happened while handlers were `kept`: whether Ctrl+C was pressed, and which handlers were changed."""

    interrupted: bool = False
    changed: tuple[str, ...] = ()


@contextmanager
def kept() -> Iterator[Watch]:
    """Put back the signal handlers and mask of the main thread, whatever is done to them within."""
    watch = Watch()
    before = {number: signal.getsignal(number) for number in KEPT}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    ctrl_c = before[signal.SIGINT]

    def noted(number: int, frame: FrameType | None) -> None:
        watch.interrupted = True
        if callable(ctrl_c):
            ctrl_c(number, frame)

    expected = before | ({signal.SIGINT: noted} if callable(ctrl_c) else {})
    if callable(ctrl_c):
        signal.signal(signal.SIGINT, noted)
    try:
        yield watch
    finally:
        found = {number: signal.getsignal(number) for number in KEPT}
        watch.changed = tuple(number.name for number in KEPT if found[number] != expected[number])
        if signal.pthread_sigmask(signal.SIG_SETMASK, mask) != mask:
            watch.changed += ("the signals that are blocked",)
        for number, handler in before.items():
            if handler is not None:  # of C, and out of reach
                signal.signal(number, handler)  # also where it seems unchanged: C libraries set theirs unseen


@contextmanager
def shielded() -> Iterator[None]:
    """A process that is started within never receives these signals: SLURM sends them to whatever a job has started, and
    the step under way still needs its reward servers and W&B's service. They end with the run that started them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, EXIT_CODES)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def tell_exit(code: int) -> None:
    """Leave word of this process's exit code for whoever started the job: the first that ends by itself says why.

    Those that follow it, or are killed because of it, say nothing. Where the word cannot be left, each one's own code counts.
    """
    if code and (file := os.environ.get(EXIT_FILE)):
        with suppress(OSError), Path(file).open("x", encoding="ascii") as stream:
            stream.write(f"{code}\n")


def told_exit(file: Path) -> int | None:
    """The exit code that was left there, if any was."""
    text = file.read_text(encoding="ascii") if file.is_file() else ""
    return int(text) if text.strip().isdigit() else None
