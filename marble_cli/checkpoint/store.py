"""Step folders of a run: safetensors and one JSON manifest with the SHA-256 of every file.

A folder is written under a temporary name, flushed to disk and renamed: it exists whole or not at all.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from marble_cli.checkpoint import manifest as manifests
from marble_cli.checkpoint.manifest import REMEDY, STEP_FOLDER
from marble_cli.checkpoint.pickled import refuse_pickled
from marble_cli.errors import CheckpointError, StorageError
from marble_cli.folder import FREE_SOME, flush, write_whole, writing
from marble_cli.paths import expand

log = logging.getLogger("marble")

FOLDERS = {"lora": "lora", "full": "transformer"}  # of the trained weights, by what these are
WEIGHTS = {  # the names that diffusers looks for
    "lora": "pytorch_lora_weights.safetensors",
    "full": "diffusion_pytorch_model.safetensors",
}
HEADER = 100  # bytes, about, that a tensor takes in a file's header beside its name
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass
class TrainerState:
    """What the trainer needs beside the trained weights: named groups of tensors (one file each) and JSON-able `info`.

    `train` says what these weights are, `lora` or `full`.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    info: dict[str, Any]
    train: str = "lora"


def weight_files(train: str) -> tuple[str, str]:
    """The files of a step folder with the trained weights and with their moving average."""
    return f"{FOLDERS[train]}/{WEIGHTS[train]}", f"ema/{WEIGHTS[train]}"


def save(
    run: Path,
    state: TrainerState,
    trained: dict[str, Tensor],
    ema: dict[str, Tensor],
    *,
    keep_last: int,
    best: bool,
    keep_every: int = 0,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a step folder, read it back, point `latest` (and `best`) at it and delete what is no longer kept.

    Args:
        run: the run's folder.
        state: the trainer's state.
        trained: the trained weights, as diffusers names them.
        ema: its moving average, alike.
        keep_last: newest whole step folders to keep; the best is kept besides.
        best: whether this is the best so far.
        keep_every: steps that are multiples of it are kept for good; 0 for none.
        metadata: strings to keep in the headers of both files: a LoRA's rank and alpha, as diffusers names them.

    Raises:
        StorageError: the disk is full, the folder cannot be written or reads back as something else, or a value is
            not finite; earlier checkpoints stay.
    """
    parent = run / "checkpoints"
    final = parent / f"step-{state.step:08d}"
    weights = dict(zip(weight_files(state.train), (trained, ema), strict=True))
    groups = dict(weights)
    groups |= {f"{name}.safetensors": tensors for name, tensors in state.tensors.items()}
    for name, tensors in groups.items():
        if bad := _not_finite(tensors):
            raise StorageError(
                f"step {state.step} is not kept: {bad} of {name} is not finite, so it could not be gone on from. Earlier "
                "checkpoints are untouched; continue from one with --resume auto and e.g. a lower optimizer.lr."
            )
    temporary = parent / f".{final.name}.tmp"
    size = sum(t.nbytes + len(name) + HEADER for tensors in groups.values() for name, t in tensors.items())
    with writing(final, f"{FREE_SOME} Earlier checkpoints are untouched.", size):
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _remove(temporary)
            for name, tensors in groups.items():
                _write(temporary / name, tensors, metadata if name in weights else None)
            manifests.write(temporary, state.step, state.info, sorted(groups))
            if final.exists():
                shutil.rmtree(final)
            temporary.rename(final)
            flush(parent)
        except (OSError, SafetensorError):
            _remove(temporary)
            raise
    try:
        manifests.check_files(final, manifests.read(final))
    except CheckpointError as error:
        raise StorageError(
            f"{final} was written and reads back as something else. Earlier checkpoints are untouched. Look at the disk. {error}"
        ) from error
    for pointer in ("latest", "best") if best else ("latest",):
        write_whole(parent / pointer, final.name + "\n")
    _retain(final, keep_last, keep_every)
    return final


def _write(file: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str] | None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    values = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    save_file(values, file, dict(metadata) if metadata else {"format": "pt"})
    flush(file)


def _not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor with a value that is not finite, if there is one."""
    return next((name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())), None)


def steps(run: Path) -> list[Path]:
    """A run's step folders, newest first."""
    found = (p for p in (run / "checkpoints").glob("step-*") if STEP_FOLDER.fullmatch(p.name))
    return sorted(found, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """The step that a step folder's name states."""
    return int(folder.name.removeprefix("step-"))


def set_aside(run: Path, step: int) -> list[Path]:
    """Rename the checkpoints after `step`, which a run that goes back to it leaves behind; returns their new paths."""
    moved = []
    for folder in steps(run):
        if step_of(folder) > step:
            name, times = f"abandoned-{folder.name}", 1
            while folder.with_name(name).exists():
                times += 1
                name = f"abandoned-{folder.name}-{times}"
            moved.append(folder.rename(folder.with_name(name)))
            if _pointed(run, "best") == folder.name:
                (run / "checkpoints" / "best").unlink()
    return moved


def point_best(run: Path, step: int | None) -> None:
    """Where no checkpoint is the best, because a run went back, let that of `step` be it again."""
    name = None if step is None else f"step-{step:08d}"
    if name is not None and _pointed(run, "best") is None and (run / "checkpoints" / name).is_dir():
        write_whole(run / "checkpoints" / "best", f"{name}\n")


def sweep(run: Path) -> None:
    """Remove what a process that died while it wrote or deleted a checkpoint has left."""
    for left in (run / "checkpoints").glob(".*.tmp"):
        _remove(left)


def _pointed(run: Path, pointer: str) -> str | None:
    """The name of the step folder that `latest` or `best` names, if it names one."""
    path = run / "checkpoints" / pointer
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        name = stream.read(64).decode(errors="replace").strip()
    return name if STEP_FOLDER.fullmatch(name) else None


def _retain(written: Path, keep_last: int, keep_every: int) -> None:
    """Delete step folders beside `written`, which was verified, that nothing keeps; a damaged one does not count."""
    run, whole = written.parent.parent, 0
    best = _pointed(run, "best")
    for folder in steps(run):
        if whole < max(1, keep_last) or folder == written:
            whole += _is_whole(folder)
        elif folder.name != best and not (keep_every and step_of(folder) % keep_every == 0):
            doomed = folder.with_name(f".{folder.name}.tmp")
            _remove(doomed)
            folder.rename(doomed)  # half deleted, it shall not pass for a checkpoint
            _remove(doomed)


def _is_whole(folder: Path) -> bool:
    """By its manifest and the sizes of its files; their contents are not read."""
    try:
        manifests.check_files(folder, manifests.read(folder), contents=False)
    except CheckpointError:
        return False
    return True


def _remove(path: Path) -> None:
    """Delete a file, link or folder; what cannot be is left, and said, for it is in nobody's way but the disk's."""
    try:
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)
    except OSError as error:
        log.warning("%s could not be deleted: %s", path, error.strerror)


def load(folder: Path) -> tuple[TrainerState, dict[str, Tensor], dict[str, Tensor]]:
    """The trainer's state, the trained weights and their moving average, after every file was verified.

    Raises:
        CheckpointError: something is missing, altered, not finite, of a newer format, or no checkpoint at all.
    """
    manifest = manifests.read(folder)
    train = "full" if weight_files("full")[0] in manifest.files else "lora"
    for name in weight_files(train):
        if name not in manifest.files:
            raise CheckpointError(f"{folder / manifests.NAME} does not list {name}. {REMEDY}")
    manifests.check_files(folder, manifest)
    groups = {name.removesuffix(".safetensors"): _tensors(folder / name) for name in manifest.files}
    trained, ema = (groups.pop(name.removesuffix(".safetensors")) for name in weight_files(train))
    return TrainerState(manifest.step, groups, manifest.info, train), trained, ema


def _tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, all of them floats and finite.

    Raises:
        CheckpointError: they are not, or it holds something else.
    """
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError, KeyError, ValueError) as error:  # KeyError: a type that torch has not
        raise CheckpointError(f"{file} is no safetensors file: {error}. {REMEDY}") from error
    if strange := [name for name, tensor in tensors.items() if tensor.dtype not in FLOATS]:
        raise CheckpointError(f"{file} is of no use: {strange[0]} is {tensors[strange[0]].dtype}. {REMEDY}")
    if bad := _not_finite(tensors):
        raise CheckpointError(f"{file} is of no use: {bad} has values that are not finite. {REMEDY}")
    return tensors


def resolve(spec: str) -> Path:
    """The step folder that a checkpoint's or a run's path names; of a run, the latest.

    Raises:
        CheckpointError: there is none, or it is pickled.
    """
    path = expand("", spec)
    if (path / manifests.NAME).is_file():
        return path
    parent = path / "checkpoints"
    if not parent.is_dir():
        if path.exists():
            refuse_pickled(path)
        raise CheckpointError(
            f"{spec} is neither a checkpoint (a folder with state.json) nor a run (a folder with checkpoints/). "
            "Expected e.g. runs/demo, runs/demo/checkpoints/step-00000010, or base."
        )
    name = _pointed(path, "latest")
    if name is not None and (parent / name).is_dir():
        return parent / name
    found = steps(path)
    if not found:
        refuse_pickled(parent)
        raise CheckpointError(f"{parent} holds no checkpoint yet. Train on, or name another run.")
    return found[0]


def newest_valid(run: Path, before: int | None = None) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest step folder (of those before a step) that verifies, and those passed over with the reason."""
    skipped = []
    for folder in steps(run):
        if before is not None and step_of(folder) >= before:
            continue
        try:
            load(folder)
        except CheckpointError as error:
            skipped.append((folder, str(error)))
            continue
        return folder, skipped
    return None, skipped
