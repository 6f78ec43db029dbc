"""Allow one run at a time in a run's folder.

The file run.lock names the process that uses the folder and is deleted when that process ends. On one machine
the kernel decides whether a lock is held: it releases the lock when its process ends in any way, also in a
container. A file server may or may not share locks among machines, so the lock of another machine counts as
held. The exception is a lock left by an earlier start of the same SLURM job: that start has ended, otherwise
this one would not run.
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
    """The process that holds a folder.

    Attributes:
        host: the name of its machine.
        boot: the kernel's id of the machine's current boot.
        pid: the process id.
        started: the clock tick since boot at which the process started.
        since: the time at which it took the folder.
        job: the SLURM job id, or empty.
        restart: how often the SLURM job was restarted.
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

    def is_running(self, ours: "Holder", free: bool | None) -> bool | None:
        """Tell whether the process still runs; None if `ours` cannot find out.

        Args:
            ours: this process.
            free: whether the kernel gave us the lock; None if the file system has no locks.
        """
        if free is False or (self.boot, self.pid, self.started) == (ours.boot, ours.pid, ours.started):
            return True
        if self.boot == ours.boot and (free or self.host == ours.host):
            return False if free else _start_tick(self.pid) == self.started
        if (self.host == ours.host and self.boot != ours.boot) or (
            self.job and self.job == ours.job and self.restart < ours.restart
        ):
            return False  # since then the machine or the job was restarted
        return None


def this_process() -> Holder:
    """Return a description of this process, as the holder of a folder from now on."""
    host, pid = socket.gethostname(), os.getpid()
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    return Holder(
        host=host,
        boot=boot_id.read_text().strip() if boot_id.is_file() else host,
        pid=pid,
        started=_start_tick(pid),
        since=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        job=os.environ.get("SLURM_JOB_ID", ""),
        restart=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
    )


def _start_tick(pid: int) -> int:
    """Return the clock tick since boot at which a process started; -1 if there is no such process."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return -1


class RunLock:
    """The lock of a run's folder; a context manager that releases the lock if it was acquired.

    Args:
        folder: the run's folder; it must exist when the lock is acquired.
    """

    def __init__(self, folder: Path) -> None:
        # Absolute, because a reward may change the working directory.
        self.folder = folder.absolute()
        self.path, self.descriptor = self.folder / NAME, -1

    def __enter__(self) -> "RunLock":
        return self

    @property
    def is_held(self) -> bool:
        """Tell whether this object holds the lock."""
        return self.descriptor >= 0

    def acquire(self) -> None:
        """Lock the folder, unless this object holds it already.

        Raises:
            RequestError: another process holds the folder, or may hold it.
            StorageError: the lock file does not fit on the disk.
        """
        while not self.is_held:
            ours = this_process()
            with writing(self.path, FREE_SOME):
                descriptor = self._open(os.O_CREAT)
            try:
                before = self._examine(descriptor, ours)
                if not self._is_linked(descriptor):  # another process released the lock meanwhile
                    continue
                if before is not None:
                    log.warning(
                        "%s has ended without releasing %s; this run takes the folder over",
                        before,
                        self.folder,
                    )
                with writing(self.path, FREE_SOME):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, (json.dumps(asdict(ours)) + "\n").encode(), 0)
                    os.fsync(descriptor)  # so that other machines see the holder
                self.descriptor = descriptor
            finally:
                if not self.is_held:
                    os.close(descriptor)

    def _open(self, flags: int) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | flags, 0o666)
        except PermissionError as error:
            raise RequestError(
                f"{self.path} cannot be opened: it or its folder belongs to another user, whose run may "
                "train there. Ask them, or choose another folder with run.dir=..."
            ) from error

    def _is_linked(self, descriptor: int) -> bool:
        """Tell whether the opened file is still the one at `path`."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        return False

    def check(self) -> None:
        """Check that the folder could be locked, without writing anything.

        Raises:
            RequestError: another process holds the folder, or may hold it.
        """
        with suppress(FileNotFoundError):
            descriptor = self._open(0)
            try:
                self._examine(descriptor, this_process())
            finally:
                os.close(descriptor)

    def _examine(self, descriptor: int, ours: Holder) -> Holder | None:
        """Take the kernel's lock; return the previous holder if it ended without releasing the folder.

        Raises:
            RequestError: another process holds the file, or may hold it.
        """
        free = _lock(descriptor)
        before = self._read(descriptor)
        running = free is False if before is None else before.is_running(ours, free)
        if running:
            raise RequestError(
                f"{self.folder} is in use: {before or 'another process'} trains there. Nothing was "
                "changed. Wait for it or stop it, or choose another folder with run.dir=..."
            )
        if running is None:
            raise RequestError(
                f"{self.folder} was taken by {before}. Whether that process still runs cannot be seen "
                f"from {ours.host}. Nothing was changed. If it has ended, delete {self.path} and start "
                "again; else choose another folder with run.dir=..."
            )
        return before

    def _read(self, descriptor: int) -> Holder | None:
        """Return the holder in the file; None if its creator has not written it yet, or died first."""
        text = os.pread(descriptor, 1 << 16, 0)
        try:
            return Holder(**json.loads(text)) if text else None
        except (ValueError, TypeError) as error:
            raise RequestError(
                f"{self.path} does not say which process has the run ({error}). Nothing was changed. If no "
                "process has the run, delete it and start again."
            ) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_held:
            with suppress(OSError):  # the folder was deleted or made read-only
                self.path.unlink()
            os.close(self.descriptor)
            self.descriptor = -1


def is_held(folder: Path) -> bool:
    """Tell whether a process holds the run's folder, or may hold it."""
    try:
        RunLock(folder).check()
    except (RequestError, OSError):  # for example a file that only another user may open
        return True
    return False


def _lock(descriptor: int) -> bool | None:
    """Ask the kernel for the file's lock, without waiting.

    Returns True if this process got the lock, False if another process has it, and None if the file system
    has no locks. Forked children do not inherit these locks.
    """
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True
