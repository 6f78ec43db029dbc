"""Files that only unpickling could read, which marble does not do: it runs whatever code they hold."""

import zipfile
from itertools import chain, islice
from pathlib import Path

from marble_cli.errors import CheckpointError

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
PROTOCOLS = tuple(bytes((0x80, version)) for version in range(2, 6))  # how a pickle of protocol 2 to 5 begins
LOOKED_AT = 10_000  # files of a folder


def is_pickled(file: Path) -> bool:
    """By its name, or by how it begins, `file` is a pickle or torch's archive of one."""
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
    """Refuse a pickled file, or a folder that holds one by its name.

    Raises:
        CheckpointError: naming the file.
    """
    if path.is_dir():
        files = islice(chain(path.glob("*"), path.glob("*/*")), LOOKED_AT)
        found = next((file for file in files if file.suffix.lower() in SUFFIXES), None)
    else:
        found = path if is_pickled(path) else None
    if found is not None:
        raise CheckpointError(
            f"{found} is a pickled file. marble unpickles nothing: it would run whatever code the file holds. Expected a "
            "step folder of safetensors files, as `marble train` writes it."
        )
