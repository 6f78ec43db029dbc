"""One run at a time in a run's folder: its file run.lock says which process has the folder, and is gone when that ends.

Processes of one machine are told apart by the kernel, which lets go of a lock when its process ends in any way, in a container
too. File servers may pass locks on to other machines or not, so that a lock of another machine counts as held, unless an earlier
start of the same SLURM job left it: that has ended, or this one would not run.
"""

import fcntl
import json
import logging
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from marble_cli.errors import RequestError
from marble_cli.files import FREE_SOME, writing

log = logging.getLogger("marble.run")

NAME = "run.lock"  # in a run's folder


@dataclass(frozen=True)
class Holder:
    """A process: its machine by name and by the kernel's number of this boot, its id, the clock tick that it started at,
    when it took the folder, and the SLURM job and how often that was restarted.
    """

    host: str
    boot: str
    pid: int
    started: int
    since: str
    job: str = ""
    restart: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since})"

    def runs(self, ours: "Holder", free: bool | None) -> bool | None:
        """Say whether it still runs, as far as `ours` can know; None where it cannot.

        Args:
            ours: this process.
            free: whether the kernel gave us its lock; None where the file system has no locks.
        """
        if free is False or (self.boot, self.pid, self.started) == (ours.boot, ours.pid, ours.started):
            return True
        if self.boot == ours.boot and (free or self.host == ours.host):
            return False if free else _started(self.pid) == self.started
        if (self.host == ours.host and self.boot != ours.boot) or (
            self.job and self.job == ours.job and self.restart < ours.restart
        ):
            return False  # the machine was started anew since, or the job
        return None


def this() -> Holder:
    """Return this process, as it takes a folder now."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return Holder(
        socket.gethostname(), boot.read_text().strip() if boot.is_file() else socket.gethostname(), os.getpid(),
        _started(os.getpid()), time.strftime("%Y-%m-%d %H:%M:%S %z"), os.environ.get("SLURM_JOB_ID", ""),
        int(os.environ.get("SLURM_RESTART_COUNT") or 0),
    )  # fmt: skip


def _started(pid: int) -> int:
    """Return the clock tick since boot at which a process began; -1 where there is none of this id."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return -1


class RunLock:
    """The lock of a run's folder; a context manager that lets go of it, if it was taken.

    Args:
        folder: the run's; it has to exist when the lock is taken.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.descriptor = folder.absolute() / NAME, -1  # whatever folder a reward changes to

    def __enter__(self) -> "RunLock":
        return self

    def take(self) -> None:
        """Take the folder, unless this object has it already.

        Raises:
            RequestError: another process has it, or may have it.
            StorageError: the disk has no room for the file.
        """
        while self.descriptor < 0:
            ours = this()
            with writing(self.path, FREE_SOME):
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                before = self._examine(descriptor, ours)
                if not self._is_there(descriptor):  # another process let go of it meanwhile
                    continue
                if before is not None:
                    log.warning(
                        "%s is gone and never let go of %s; this run takes its place",
                        before,
                        self.path.parent,
                    )
                with writing(self.path, FREE_SOME):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, (json.dumps(asdict(ours)) + "\n").encode(), 0)
                    os.fsync(descriptor)  # other machines see it from now on
                self.descriptor = descriptor
            finally:
                if self.descriptor < 0:
                    os.close(descriptor)

    def _is_there(self, descriptor: int) -> bool:
        """Say whether the opened file still has its name."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        return False

    def check(self) -> None:
        """Look whether the folder could be taken; nothing is written.

        Raises:
            RequestError: another process has it, or may have it.
        """
        with suppress(FileNotFoundError):
            descriptor = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                self._examine(descriptor, this())
            finally:
                os.close(descriptor)

    def _examine(self, descriptor: int, ours: Holder) -> Holder | None:
        """Return the process that ended without letting go, if one did; the kernel's lock of the file is ours from here on.

        Raises:
            RequestError: a process has the file, or may have it.
        """
        free = _lock(descriptor)
        before = self._read(descriptor)
        runs = free is False if before is None else before.runs(ours, free)
        if runs:
            raise RequestError(
                f"{self.path.parent} is in use: {before or 'another process'} trains there. Nothing was changed. Wait for it "
                "or stop it, or choose another folder with run.dir=..."
            )
        if runs is None:
            raise RequestError(
                f"{self.path.parent} was taken by {before}. Whether that still runs cannot be seen from {ours.host}. Nothing "
                f"was changed. If it has ended, delete {self.path} and start again; else choose another folder with run.dir=..."
            )
        return before

    def _read(self, descriptor: int) -> Holder | None:
        """Return who wrote the file; None where it is empty: just made, or by a process that ended before it wrote."""
        text = os.pread(descriptor, 1 << 16, 0)
        try:
            return Holder(**json.loads(text)) if text else None
        except (ValueError, TypeError) as error:
            raise RequestError(
                f"{self.path} does not say which process has the run ({error}). Nothing was changed. If none has, delete it "
                "and start again."
            ) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.descriptor >= 0:
            with suppress(OSError):  # a folder that is gone, or that nobody may write any more, holds no lock
                self.path.unlink()
            os.close(self.descriptor)
            self.descriptor = -1


def is_held(folder: Path) -> bool:
    """Say whether a process has the run, or may have it."""
    try:
        RunLock(folder).check()
    except (RequestError, OSError):  # such as a file that only another user may open
        return True
    return False


def _lock(descriptor: int) -> bool | None:
    """Ask the kernel for the file: True if it is ours, False if another process has it, None where it cannot tell.

    These locks are a process's own: children that it forks do not hold on to them.
    """
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True
