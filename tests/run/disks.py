"""Disks that can be filled: a limit on the size of files, and a small file system of its own."""

import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SMALL = 2048  # bytes that a file may always have: a log and a lock, but no tensors or pictures


@dataclass(frozen=True)
class Disk:
    """A file system of half a megabyte, mounted at `folder`."""

    folder: Path
    reason, left = "No space left on device", " 0"

    def fill(self, leave: int = 0) -> None:
        """Fill the disk except for `leave` bytes."""
        with (self.folder / "filler").open("wb", buffering=0) as stream:
            room = shutil.disk_usage(self.folder).free - leave
            while room > 0:
                room -= stream.write(bytes(min(room, 4096)))

    def free(self) -> None:
        """Give the room back."""
        (self.folder / "filler").unlink()

    def has_at_most(self, free: int, size: int) -> bool:
        """Check the room that a message states."""
        return free <= size + 4096


@dataclass(frozen=True)
class Quota(Disk):
    """A limit on the size of files, which every user can set."""

    reason, left = "File too large", r" [\d,]+"

    def fill(self, leave: int = 0) -> None:
        """Let no file grow beyond a quarter of `leave`, less than the largest of a checkpoint needs."""
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (leave // 4 or SMALL, hard))

    def free(self) -> None:
        """Lift the limit."""
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    def has_at_most(self, free: int, size: int) -> bool:
        """Check nothing: the disk has more room than a file may take."""
        return True


def mount(folder: Path) -> bool:
    """Mount a file system of half a megabyte, if this user may."""
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0


def disks() -> list[type[Disk]]:
    """Choose the kinds of full disk that this user can have; a quota is among them everywhere."""
    with tempfile.TemporaryDirectory() as folder:
        if not mount(Path(folder)):
            return [Quota]
        subprocess.run(["umount", folder], check=True)
    return [Quota, Disk]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Limit the size of files that this process writes to `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
