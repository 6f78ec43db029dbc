"""Files and folders that a command writes: looked at before anything long begins, and written whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from marble_cli.errors import RequestError, StorageError

WRITTEN = (  # in a run's folder
    "config.yaml", "metrics.jsonl", "log.txt", "checkpoints", "samples", "skipped", "wandb", "run.lock",
)  # fmt: skip
FREE_SOME = "Free some space and continue with --resume auto."


def check_writable(folder: Path, option: str) -> Path:
    """`folder` can be written, or made; it is not made here.

    Args:
        folder: where a command is to write.
        option: what stands before it on the command line, for the message.

    Returns:
        The nearest folder that exists already.

    Raises:
        RequestError: it cannot.
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
    """`path`, or the first folder above it that is there."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if os.path.exists(p))


def check_inside(folder: Path, names: tuple[str, ...]) -> None:
    """None of `names` in `folder` is a link that leads out of it, where a command would write somewhere else.

    Raises:
        RequestError: one does.
    """
    for name in names:
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise RequestError(
                f"{folder / name} is a link that leads out of the folder, to {(folder / name).resolve()}. Nothing was "
                "changed. Remove it; to keep a run on another disk, point run.dir= there."
            )


@contextmanager
def writing(path: Path, remedy: str, needed: int | None = None) -> Iterator[None]:
    """Whatever goes wrong when `path` is written within is told in one way, with the room that there is.

    Args:
        path: what is written.
        remedy: what the user can do, in whole sentences.
        needed: bytes that it needs, where known.

    Raises:
        StorageError: the disk is full, a limit was reached, or the like.
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


def flush(path: Path) -> None:
    """Have a file or a folder's listing on the disk before anything that follows."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, text: str) -> None:
    """Write a text file that is there whole or, if the process dies or the disk is full, as it was before.

    Raises:
        StorageError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path, FREE_SOME, len(text.encode())):
        try:
            temporary.write_text(text, encoding="utf-8")
            flush(temporary)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


class AppendedFile:
    """A text file that grows by whole pieces: of one that does not fit, nothing is left.

    Raises:
        StorageError: the file cannot be opened or written; its message ends with `remedy`.
    """

    def __init__(self, path: Path, remedy: str = FREE_SOME) -> None:
        self.path, self.remedy = path, remedy
        with writing(path, remedy):
            self._stream = path.open("ab", buffering=0)  # with no buffer, nothing is left over for `close`

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
