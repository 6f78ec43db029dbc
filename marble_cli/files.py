"""Check output paths before long work begins, and write files atomically: complete or not at all."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from marble_cli.errors import RequestError, StorageError

log = logging.getLogger("marble")

# Everything that a run writes into its folder.
RUN_ENTRIES = (
    "config.yaml",
    "metrics.jsonl",
    "log.txt",
    "checkpoints",
    "samples",
    "skipped",
    "tensorboard",
    "trackio",
    "wandb",
    "run.lock",
)
FREE_SOME = "Free some space and continue with --resume auto."


def check_writable(folder: Path, option: str) -> Path:
    """Check that `folder` can be written or created, without creating it.

    Args:
        folder: the folder that a command is going to write.
        option: the text before the folder on the command line, for the message, e.g. `run.dir=`.

    Returns:
        The nearest existing folder: `folder` itself or one above it.

    Raises:
        RequestError: the folder cannot be written.
    """
    existing = nearest_existing(folder)
    try:
        with tempfile.TemporaryFile(dir=existing):
            return existing
    except OSError as error:
        raise RequestError(
            f"{option}{folder} cannot be written: {error.strerror}. Choose another folder."
        ) from error


def nearest_existing(path: Path) -> Path:
    """Return `path` if it exists, else the nearest above it that does; a link that leads nowhere exists."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if os.path.lexists(p))


def check_inside(folder: Path, names: tuple[str, ...]) -> None:
    """Check that none of the entries `names` of `folder` is a link that leads out of the folder.

    Raises:
        RequestError: an entry is such a link.
    """
    for name in names:
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise RequestError(
                f"{folder / name} is a link that leads out of the folder, to {(folder / name).resolve()}. "
                "Nothing was changed. Remove the link; to keep a run on another disk, set run.dir= to a "
                "folder there."
            )


@contextmanager
def writing(path: Path, remedy: str, needed: int | None = None) -> Iterator[None]:
    """Re-raise every failure to write `path` as a StorageError that reports the free space.

    Args:
        path: the file or folder that is written inside the block.
        remedy: what the user can do, in full sentences.
        needed: the number of bytes that will be written, if known.

    Raises:
        StorageError: the disk is full, a limit was reached, or another I/O error occurred.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        needs = "" if needed is None else f"It needs about {needed:,} bytes; "
        existing = nearest_existing(path.parent)
        free = shutil.disk_usage(existing).free
        raise StorageError(
            f"{path} could not be written: {reason}. {needs}{free:,} bytes are free in {existing}. {remedy}"
        ) from error


def fsync(path: Path) -> None:
    """Fsync a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, text: str, remedy: str = FREE_SOME) -> None:
    """Write a text file atomically: if the process dies or the disk is full, the previous content stays.

    Raises:
        StorageError: the file cannot be written; its message ends with `remedy`.
    """
    beside = temporary(path)
    with writing(path, remedy, len(text.encode())):
        try:
            beside.write_text(text, encoding="utf-8")
            fsync(beside)
            beside.replace(path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise


def temporary(path: Path) -> Path:
    """Return the file that `write_whole` writes first, and that a kill leaves."""
    return path.with_name(f".{path.name}.tmp")


def remove(path: Path) -> None:
    """Delete a file, link or folder; on failure only warn, because a leftover merely takes disk space."""
    try:
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)
    except OSError as error:
        log.warning("%s could not be deleted: %s", path, error.strerror)


class AppendedFile:
    """A text file that grows by complete pieces; a piece that does not fit is removed again.

    Raises:
        StorageError: the file cannot be opened or written; its message ends with `remedy`.
    """

    def __init__(self, path: Path, remedy: str = FREE_SOME) -> None:
        self.path, self.remedy = path, remedy
        with writing(path, remedy):
            self._stream = path.open("ab", buffering=0)  # unbuffered, so that `close` has nothing to write

    def append(self, text: str) -> None:
        rest = text.encode()
        with writing(self.path, self.remedy, len(rest)):
            end = self._stream.seek(0, os.SEEK_END)
            try:
                while rest:
                    rest = rest[self._stream.write(rest) :]
            except OSError:
                self._stream.truncate(end)
                raise

    def close(self) -> None:
        self._stream.close()
