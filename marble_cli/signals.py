"""How a run is asked to stop, after the step under way and a checkpoint, and how its processes tell why they ended."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

EXIT_FILE = "MARBLE_EXIT_FILE"  # variable with the path of a file for the exit code of a job's processes
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}


class Interrupt:
    """While entered, `exit_code` is None until a signal asks the run to stop; a second Ctrl+C stops at once."""

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        for number in EXIT_CODES:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.exit_code is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.exit_code = EXIT_CODES[signal.Signals(number)]

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


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
