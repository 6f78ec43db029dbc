"""Step folders of a run: safetensors and one JSON manifest with the SHA-256 of every file.

A folder is written under a temporary name, flushed to disk and renamed: it exists whole or not at all.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from marble_cli.errors import CheckpointError, StorageError

FORMAT_VERSION = 1
WEIGHTS = "pytorch_lora_weights.safetensors"
STEP_FOLDER = re.compile(r"step-\d{8,}")


@dataclass
class TrainerState:
    """What the trainer needs beside the LoRA: named groups of tensors (one file each) and JSON-able `info`."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    info: dict[str, Any]


def save(
    run: Path,
    state: TrainerState,
    lora: dict[str, Tensor],
    ema: dict[str, Tensor],
    *,
    keep_last: int,
    best: bool,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a step folder, point `latest` (and `best`) at it and delete what retention no longer keeps.

    Args:
        run: the run's folder.
        state: the trainer's state.
        lora: the trained adapter in diffusers' LoRA key format.
        ema: its moving average, alike.
        keep_last: newest step folders to keep; the best is kept besides.
        best: whether this is the best so far.
        metadata: strings to keep in the LoRA files' headers: their rank and alpha, as diffusers names them.

    Raises:
        StorageError: the disk is full or the folder cannot be written; earlier checkpoints stay valid.
    """
    parent = run / "checkpoints"
    final = parent / f"step-{state.step:08d}"
    groups = {f"lora/{WEIGHTS}": lora, f"ema/{WEIGHTS}": ema}
    groups |= {f"{name}.safetensors": tensors for name, tensors in state.tensors.items()}
    temporary = parent / f".{final.name}.tmp"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        for name, tensors in groups.items():
            file = temporary / name
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file(
                {key: value.detach().cpu().contiguous() for key, value in tensors.items()},
                file,
                dict(metadata) if metadata and name.endswith(WEIGHTS) else {"format": "pt"},
            )
            _flush(file)
        _write_manifest(temporary, state, sorted(groups))
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        _flush(parent)
        for pointer in ("latest", "best") if best else ("latest",):
            write_whole(parent / pointer, final.name + "\n")
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        size = sum(t.numel() * t.element_size() for tensors in groups.values() for t in tensors.values())
        raise StorageError(
            f"checkpoint {final} could not be written ({error}). It needs about {size:,} bytes; "
            "free some space and continue with --resume auto. Earlier checkpoints are untouched."
        ) from error
    _retain(parent, keep_last)
    return final


def _write_manifest(folder: Path, state: TrainerState, names: list[str]) -> None:
    listing = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": _digest(folder / name)} for name in names
    }
    manifest = {"format_version": FORMAT_VERSION, "step": state.step, "info": state.info, "files": listing}
    path = folder / "state.json"
    path.write_text(json.dumps(manifest | {"sha256": _own_digest(manifest)}, indent=1), encoding="utf-8")
    _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _own_digest(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest's content, which its own entry `sha256` is not part of."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Write a text file that is there whole or, if the process dies meanwhile, as it was before."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    _flush(temporary)
    temporary.replace(path)


def steps(run: Path) -> list[Path]:
    """A run's step folders, newest first."""
    return sorted(
        (p for p in (run / "checkpoints").glob("step-*") if STEP_FOLDER.fullmatch(p.name)), reverse=True
    )


def set_aside(run: Path, step: int) -> list[Path]:
    """Rename the checkpoints after `step`, which a run that goes back to it leaves behind; returns their new paths."""
    moved = []
    for folder in steps(run):
        if int(folder.name.removeprefix("step-")) > step:
            moved.append(folder.rename(folder.with_name(f"abandoned-{folder.name}")))
            best = run / "checkpoints" / "best"
            if best.is_file() and best.read_text(encoding="utf-8").strip() == folder.name:
                best.unlink()
    return moved


def _retain(parent: Path, keep_last: int) -> None:
    best = parent / "best"
    kept = {best.read_text(encoding="utf-8").strip()} if best.is_file() else set()
    for folder in steps(parent.parent)[max(1, keep_last) :]:
        if folder.name not in kept:
            shutil.rmtree(folder)


def load(folder: Path) -> tuple[TrainerState, dict[str, Tensor], dict[str, Tensor]]:
    """The trainer's state, the LoRA and its moving average, after every file was verified.

    Raises:
        CheckpointError: something is missing, altered, of a newer format, or no checkpoint at all.
    """
    path = folder / "state.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version, step, info, listing = (manifest[key] for key in ("format_version", "step", "info", "files"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is no checkpoint: it has no state.json. {_REMEDY}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}. {_REMEDY}") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has checkpoint format {version}; this version reads {FORMAT_VERSION}. Update marble to read it."
        )
    if manifest.get("sha256") != _own_digest(manifest):
        raise CheckpointError(f"{path} was altered: its SHA-256 differs from the one it states. {_REMEDY}")
    groups = {name: _verified(folder, name, entry) for name, entry in listing.items()}
    missing = {f"lora/{WEIGHTS}", f"ema/{WEIGHTS}"} - groups.keys()
    if missing:
        raise CheckpointError(f"{path} does not list {sorted(missing)[0]}. {_REMEDY}")
    lora, ema = groups.pop(f"lora/{WEIGHTS}"), groups.pop(f"ema/{WEIGHTS}")
    tensors = {name.removesuffix(".safetensors"): values for name, values in groups.items()}
    return TrainerState(step, tensors, info), lora, ema


_REMEDY = "Use another step folder of the run, or --resume auto, which takes the newest valid one."


def _verified(folder: Path, name: str, entry: dict[str, Any]) -> dict[str, Tensor]:
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()) or file.suffix != ".safetensors":
        raise CheckpointError(
            f"{folder}/state.json names {name}, which is no tensor file of this folder. {_REMEDY}"
        )
    if not file.is_file():
        raise CheckpointError(f"{file} is missing from the checkpoint. {_REMEDY}")
    if file.stat().st_size != entry["bytes"]:
        raise CheckpointError(
            f"{file} has {file.stat().st_size} bytes instead of {entry['bytes']}: it was cut short. {_REMEDY}"
        )
    if _digest(file) != entry["sha256"]:
        raise CheckpointError(f"{file} was altered: its SHA-256 differs from state.json. {_REMEDY}")
    return load_file(file)


def resolve(spec: str) -> Path:
    """The step folder that a checkpoint's or a run's path names; of a run, the latest.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(spec).expanduser()
    if (path / "state.json").is_file():
        return path
    parent = path / "checkpoints"
    if not parent.is_dir():
        raise CheckpointError(
            f"{spec} is neither a checkpoint (a folder with state.json) nor a run (a folder with checkpoints/). "
            "Expected e.g. runs/demo, runs/demo/checkpoints/step-00000010, or base."
        )
    pointer = parent / "latest"
    name = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
    if STEP_FOLDER.fullmatch(name) and (parent / name).is_dir():
        return parent / name
    found = steps(path)
    if not found:
        raise CheckpointError(f"{parent} holds no checkpoint yet. Train on, or name another run.")
    return found[0]


def newest_valid(run: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest step folder that verifies, and those passed over with the reason."""
    skipped = []
    for folder in steps(run):
        try:
            load(folder)
        except CheckpointError as error:
            skipped.append((folder, str(error)))
            continue
        return folder, skipped
    return None, skipped
