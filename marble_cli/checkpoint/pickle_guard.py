"""Recognise and refuse pickled files. marble never unpickles: that would run whatever code a file holds."""

import zipfile
from itertools import chain, islice
from pathlib import Path

from marble_cli.errors import CheckpointError

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
# First bytes of a pickle of protocol 2 to 5.
PROTOCOLS = tuple(bytes((0x80, version)) for version in range(2, 6))
MOST_FILES = 10_000  # that are examined in a folder


def is_pickled(file: Path) -> bool:
    """Return whether `file` is a pickle or torch's archive of one, by its name or first bytes."""
    if not file.is_file():
        return False
    if file.suffix.lower() in SUFFIXES:
        return True
    try:
        with file.open("rb") as stream:
            if stream.read(2) in PROTOCOLS:
                return True
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def refuse_pickled(path: Path) -> None:
    """Raise an error if `path` is a pickled file, or a folder with one by its name.

    Raises:
        CheckpointError: the message names the file.
    """
    if path.is_dir():
        files = islice(chain(path.glob("*"), path.glob("*/*")), MOST_FILES)
        found = next((file for file in files if file.suffix.lower() in SUFFIXES), None)
    else:
        found = path if is_pickled(path) else None
    if found is not None:
        raise CheckpointError(
            f"{found} is a pickled file. marble never unpickles, because that would run whatever code the "
            "file holds. Expected a step folder of safetensors files, as `marble train` writes it."
        )
