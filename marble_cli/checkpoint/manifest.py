"""Read, write and check state.json of a step folder: step, trainer state, and size and SHA-256 of every file.

Its content is not trusted: all of it is checked before a file that it names is opened.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marble_cli.checkpoint.pickle_guard import is_pickled, refuse_pickled
from marble_cli.errors import CheckpointError
from marble_cli.files import fsync, temporary, write_whole

# 1 kept a LoRA's B as trained, with alpha in the header; 3 has groups of tensors in several files.
FORMAT_VERSION = 3
NAME = "state.json"
LARGEST = 64 * 2**20  # bytes of a state.json; most of them are the base model's held-out scores
STEP_FOLDER = re.compile(r"step-\d{8,15}", re.ASCII)
TENSOR_FILE = re.compile(r"([\w-]+/)?[\w-]+\.safetensors", re.ASCII)
DIGEST = re.compile(r"[0-9a-f]{64}")
REMEDY = "Use another step folder of the run, or --resume auto, which takes the newest valid one."


@dataclass(frozen=True)
class Manifest:
    """The content of a state.json."""

    step: int
    info: dict[str, Any]  # the trainer's figures
    files: dict[str, tuple[int, str]]  # (bytes, SHA-256) of the tensor files by name
    scale: float | None  # the folded scale of a LoRA; None in format 1, which does not fold


def write(
    folder: Path,
    step: int,
    info: dict[str, Any],
    files: Mapping[str, tuple[int, str]],
    scale: float | None,
    version: int = 2,
) -> None:
    """Write the manifest of a folder that holds the tensor `files`, each with its size and SHA-256."""
    listing = {name: dict(zip(("bytes", "sha256"), files[name], strict=True)) for name in sorted(files)}
    manifest = {
        "format_version": version,
        "step": step,
        "scale": scale,
        "info": info,
        "files": listing,
    }
    text = json.dumps(manifest | {"sha256": own_digest(manifest)}, indent=1, allow_nan=False)
    (folder / NAME).write_text(text, encoding="utf-8")
    fsync(folder / NAME)


def amend(folder: Path, changes: Mapping[str, Any]) -> None:
    """Change figures in the manifest of a step folder, atomically; the tensor files stay as they are.

    Raises:
        CheckpointError: the manifest is missing or damaged.
        StorageError: the new one does not fit on the disk.
    """
    read(folder)
    content = json.loads((folder / NAME).read_bytes())
    content["info"] |= changes
    content["sha256"] = own_digest(content)
    write_whole(folder / NAME, json.dumps(content, indent=1, allow_nan=False))


def describe(file: Path) -> tuple[int, str]:
    """Return the bytes and the SHA-256 of a file."""
    return file.stat().st_size, _digest(file)


def own_digest(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest's content without its entry `sha256`."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read(folder: Path) -> Manifest:
    """Read the manifest of a step folder; the files that it lists are not opened.

    Raises:
        CheckpointError: there is none, or it is damaged, altered, of a newer format or inconsistent.
    """
    path = folder / NAME
    _check_links(folder)
    if not path.is_file():
        refuse_pickled(folder)
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {NAME}. {REMEDY}")
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise ValueError(f"it has {size:,} bytes, and {LARGEST:,} at most are believed")
        content = json.loads(path.read_bytes(), parse_float=_parse_finite, parse_constant=_parse_finite)
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
        version = content.get("format_version")
        if type(version) is int and version > FORMAT_VERSION:
            raise CheckpointError(
                f"{folder} has checkpoint format {version}; this version reads 1 to {FORMAT_VERSION}. Update "
                "marble to read it."
            )
        if content.get("sha256") != own_digest(content):
            raise CheckpointError(f"{path} was altered: its SHA-256 differs from the one it states. {REMEDY}")
        return _parse_manifest(folder, content)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. {REMEDY}") from error


def _check_links(folder: Path) -> None:
    """Check that no link leads out of the run's folder or out of the step folder."""
    run = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    for path, home in ((folder, run), (folder / NAME, folder)):
        # `Path.resolve` raises at a loop of links, before Python 3.13.
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(home)):
            raise CheckpointError(f"{path} is a link that leads out of {home}. {REMEDY}")


def _parse_finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is not a finite number")
    return value


def _parse_manifest(folder: Path, content: dict[str, Any]) -> Manifest:
    """Make a manifest of a JSON object.

    Raises:
        ValueError: an entry has the wrong type or an impossible value.
    """
    version, step, info, listing = (content.get(key) for key in ("format_version", "step", "info", "files"))
    scale = content.get("scale")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise ValueError(f"format_version is {version!r}, not a number from 1 to {FORMAT_VERSION}")
    if version > 1 and not (type(scale) is float and scale > 0):
        raise ValueError(f"scale is {scale!r}, not a number above 0")
    if type(step) is not int or step < 0:
        raise ValueError(f"step is {step!r}, not a whole number from 0")
    if STEP_FOLDER.fullmatch(folder.name) and int(folder.name.removeprefix("step-")) != step:
        raise ValueError(f"it is of step {step}, and the folder's name says {folder.name}")
    if not isinstance(info, dict):
        raise ValueError("info is not an object")
    if not isinstance(listing, dict):
        raise ValueError("files is not an object")
    files = {}
    for name, entry in listing.items():
        if not TENSOR_FILE.fullmatch(name):
            raise ValueError(f"it lists {name!r}, which is not a tensor file of this folder")
        size, digest = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
        if type(size) is not int or not 0 <= size < 2**63:
            raise ValueError(f"the bytes of {name} are {size!r}, not a whole number from 0 to 2^63 - 1")
        if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
            raise ValueError(f"the sha256 of {name} is {digest!r}, not 64 hexadecimal digits")
        files[name] = (size, digest)
    return Manifest(step, info, files, scale if version > 1 else None)


def check_files(folder: Path, manifest: Manifest, contents: Collection[str]) -> None:
    """Check that the folder holds exactly the files that its manifest lists, unchanged.

    It may also hold what a kill in `amend` leaves.

    Args:
        folder: the step folder.
        manifest: the folder's manifest.
        contents: the files whose digests are compared, which reads every byte; sizes always are.

    Raises:
        CheckpointError: a file is missing, altered or not listed; the message names the first one.
    """
    for parent, folders, names in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *names)):
            if path.is_symlink():
                raise CheckpointError(f"{path} is a link; a checkpoint must hold its files itself. {REMEDY}")
        for path in (Path(parent, name) for name in names):
            if str(path.relative_to(folder)) not in (NAME, temporary(Path(NAME)).name, *manifest.files):
                if is_pickled(path):
                    refuse_pickled(path)
                raise CheckpointError(
                    f"{path} is not part of this checkpoint: {NAME} does not list it. Move it away. {REMEDY}"
                )
    for name, (size, digest) in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing from the checkpoint. {REMEDY}")
        if (found := file.stat().st_size) != size:
            fault = "was cut short" if found < size else "has grown"
            raise CheckpointError(f"{file} has {found} bytes instead of {size}: it {fault}. {REMEDY}")
        if name in contents and _digest(file) != digest:
            raise CheckpointError(f"{file} was altered: its SHA-256 differs from {NAME}. {REMEDY}")
