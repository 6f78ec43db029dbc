"""Folders that a command is to write into, looked at before anything long begins."""

import tempfile
from pathlib import Path

from marble_cli.errors import RequestError


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
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return existing
    except OSError as error:
        raise RequestError(
            f"{option}{folder} cannot be written: {error.strerror}. Choose another folder."
        ) from error
