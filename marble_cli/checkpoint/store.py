"""Save and load step folders: safetensors files and one JSON manifest with the SHA-256 of every file.

A folder is written under a temporary name, flushed to disk and renamed: it exists whole or not at all. The
files of a LoRA are folded (`checkpoint.lora`). Tensors that folding rounds are also kept exactly, in the
optimizer's file, so that `load` returns bit for bit what was passed to `save`.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from marble_cli.checkpoint import lora, tensor_files
from marble_cli.checkpoint import manifest as manifests
from marble_cli.checkpoint.manifest import REMEDY, STEP_FOLDER
from marble_cli.checkpoint.pickle_guard import refuse_pickled
from marble_cli.errors import CheckpointError, StorageError
from marble_cli.files import FREE_SOME, fsync, remove, write_whole, writing
from marble_cli.paths import expand

FOLDERS = {"lora": "lora", "full": "transformer"}  # of the trained weights, by their kind
WEIGHTS = {  # the names that diffusers looks for
    "lora": "pytorch_lora_weights.safetensors",
    "full": "diffusion_pytorch_model.safetensors",
}
HEADER = 100  # bytes per tensor in a file's header, about, besides its name
BALANCE = "balance"  # the group with a balance's state, which may hold integers
# The group that also holds the tensors that folding rounds, as `PARAMETER|lora` and `PARAMETER|ema`.
ROUNDED = "optimizer"
WITH_INTEGERS = (BALANCE, "optimizer")  # groups whose types are checked by those that read them


@dataclass
class TrainerState:
    """What a checkpoint holds besides the trained weights."""

    step: int
    tensors: dict[str, dict[str, Tensor]]  # groups of tensors by name; one file per group
    info: dict[str, Any]  # ready for JSON
    train: str = "lora"  # the kind of the trained weights: lora or full
    scale: float | None = 1.0  # a LoRA's alpha / rank; None if a checkpoint of format 1 does not state it


def weight_files(train: str) -> tuple[str, str]:
    """Return the names of a step folder's files with the trained weights and with their moving average."""
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
) -> Path:
    """Write a step folder, verify it, point `latest` (and `best`) at it and delete old step folders.

    Args:
        run: the run's folder.
        state: the trainer's state.
        trained: the trained weights, by diffusers' names.
        ema: their moving average, by the same names.
        keep_last: how many of the newest valid step folders to keep; the best is always kept.
        best: whether this is the best checkpoint so far.
        keep_every: steps that are multiples of this are never deleted; 0 for none.

    Raises:
        StorageError: the disk is full, the folder cannot be written, it reads back differently, or a value is
            not finite. Earlier checkpoints stay.
    """
    parent = run / "checkpoints"
    final = parent / f"step-{state.step:08d}"
    groups, header = _arrange_files(state, trained, ema)
    for name, tensors in groups.items():
        if bad := tensor_files.not_finite(tensors):
            raise StorageError(
                f"step {state.step} is not saved: {bad} of {name} is not finite, so no run could resume "
                "from it. Earlier checkpoints are untouched; resume from one with --resume auto and e.g. "
                "a lower optimizer.lr."
            )
    temporary = parent / f".{final.name}.tmp"
    size = sum(t.nbytes + len(name) + HEADER for tensors in groups.values() for name, t in tensors.items())
    with writing(final, f"{FREE_SOME} Earlier checkpoints are untouched.", size):
        try:
            parent.mkdir(parents=True, exist_ok=True)
            remove(temporary)
            for name, tensors in groups.items():
                entries = header if name in weight_files(state.train) else {}
                tensor_files.write(temporary / name, tensors, entries)
            manifests.write(temporary, state.step, state.info, sorted(groups), state.scale)
            if final.exists():
                shutil.rmtree(final)
            temporary.rename(final)
            fsync(parent)
        except (OSError, SafetensorError):
            remove(temporary)
            raise
    try:
        manifests.check_files(final, manifests.read(final))
    except CheckpointError as error:
        raise StorageError(
            f"{final} reads back differently from what was written. Earlier checkpoints are untouched. "
            f"Check the disk. {error}"
        ) from error
    for pointer in ("latest", "best") if best else ("latest",):
        write_whole(parent / pointer, final.name + "\n")
    _retain(final, keep_last, keep_every)
    return final


def _arrange_files(
    state: TrainerState, trained: dict[str, Tensor], ema: dict[str, Tensor]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """Return the tensors of each file of a step folder, and the header of the files of weights."""
    groups, header = dict(state.tensors), dict[str, str]()
    if state.train == "lora":
        assert state.scale is not None
        kept = lora.rounded(trained, state.scale, "lora") | lora.rounded(ema, state.scale, "ema")
        if kept:
            groups[ROUNDED] = groups.get(ROUNDED, {}) | kept
        header = lora.header(trained)
        trained, ema = lora.folded(trained, state.scale), lora.folded(ema, state.scale)
    files = {f"{name}.safetensors": tensors for name, tensors in groups.items()}
    return dict(zip(weight_files(state.train), (trained, ema), strict=True)) | files, header


def steps(run: Path) -> list[Path]:
    """Return a run's step folders, newest first."""
    folders = (p for p in (run / "checkpoints").glob("step-*") if STEP_FOLDER.fullmatch(p.name))
    return sorted(folders, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """Return the step in a step folder's name."""
    return int(folder.name.removeprefix("step-"))


def set_aside(run: Path, step: int) -> list[Path]:
    """Rename the checkpoints after `step`, to which a run goes back, and return their new paths."""
    moved = []
    for folder in steps(run):
        if step_of(folder) > step:
            name, times = f"abandoned-{folder.name}", 1
            while folder.with_name(name).exists():
                times += 1
                name = f"abandoned-{folder.name}-{times}"
            moved.append(folder.rename(folder.with_name(name)))
            if _read_pointer(run, "best") == folder.name:
                (run / "checkpoints" / "best").unlink()
    return moved


def point_best(run: Path, step: int | None) -> None:
    """Point `best` at the checkpoint of `step`, unless it points at one.

    `set_aside` removes the pointer if the best checkpoint is one of those set aside.
    """
    name = None if step is None else f"step-{step:08d}"
    if name is not None and _read_pointer(run, "best") is None and (run / "checkpoints" / name).is_dir():
        write_whole(run / "checkpoints" / "best", f"{name}\n")


def remove_leftovers(run: Path) -> None:
    """Remove temporary folders of a process that died while it wrote or deleted a checkpoint."""
    for leftover in (run / "checkpoints").glob(".*.tmp"):
        remove(leftover)


def _read_pointer(run: Path, pointer: str) -> str | None:
    """Return the name of the step folder that the pointer file `latest` or `best` holds, or None."""
    path = run / "checkpoints" / pointer
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        name = stream.read(64).decode(errors="replace").strip()
    return name if STEP_FOLDER.fullmatch(name) else None


def _retain(written: Path, keep_last: int, keep_every: int) -> None:
    """Delete the run's step folders that `save` does not keep; `written`, just verified, always stays."""
    run, valid = written.parent.parent, 0
    best = _read_pointer(run, "best")
    for folder in steps(run):
        if valid < max(1, keep_last) or folder == written:
            valid += _is_complete(folder)
        elif folder.name != best and not (keep_every and step_of(folder) % keep_every == 0):
            doomed = folder.with_name(f".{folder.name}.tmp")
            remove(doomed)
            folder.rename(doomed)  # a half-deleted folder must not look like a checkpoint
            remove(doomed)


def _is_complete(folder: Path) -> bool:
    """Check a step folder by its manifest and the sizes of its files; their contents are not read."""
    try:
        manifests.check_files(folder, manifests.read(folder), contents=False)
    except CheckpointError:
        return False
    return True


def load(folder: Path) -> tuple[TrainerState, dict[str, Tensor], dict[str, Tensor]]:
    """Read and verify the trainer's state, the trained weights and their moving average, as they were saved.

    Raises:
        CheckpointError: a file is missing, altered, not finite or of a newer format, or `folder` is no
            checkpoint.
    """
    manifest = manifests.read(folder)
    train = "full" if weight_files("full")[0] in manifest.files else "lora"
    for name in weight_files(train):
        if name not in manifest.files:
            raise CheckpointError(f"{folder / manifests.NAME} does not list {name}. {REMEDY}")
    manifests.check_files(folder, manifest)
    files = {
        group: tensor_files.read(folder / name, floats=group not in WITH_INTEGERS)
        for name in manifest.files
        for group in [name.removesuffix(".safetensors")]
    }
    (trained, header), (ema, _) = (
        files.pop(name.removesuffix(".safetensors")) for name in weight_files(train)
    )
    groups = {name: tensors for name, (tensors, _) in files.items()}
    state = TrainerState(manifest.step, groups, manifest.info, train, manifest.scale)
    if train == "full":
        return state, trained, ema
    if state.scale is None:  # format 1: B as trained, and alpha in the header
        state.scale = lora.stated_scale(header)
        return state, trained, ema
    kept = groups.get(ROUNDED, {})
    trained, ema = (
        lora.as_trained(weights, state.scale, name, kept, state.step)
        for name, weights in (("lora", trained), ("ema", ema))
    )
    return state, trained, ema


def is_checkpoint(path: Path) -> bool:
    """Tell whether a folder looks like a checkpoint or a run."""
    return (path / manifests.NAME).is_file() or (path / "checkpoints").is_dir()


def resolve(spec: str) -> Path:
    """Return the step folder that a path names: itself, or the latest of a run.

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
        runs = sorted(found.parent.name for found in path.glob("*/checkpoints"))
        raise CheckpointError(
            f"{spec} is neither a checkpoint (a folder with state.json) nor a run (a folder with "
            "checkpoints/). Expected "
            + (
                f"one of the runs in it, such as {Path(spec) / runs[0]}."
                if runs
                else "e.g. runs/demo, runs/demo/checkpoints/step-00000010, or base."
            )
        )
    name = _read_pointer(path, "latest")
    if name is not None and (parent / name).is_dir():
        return parent / name
    folders = steps(path)
    if not folders:
        refuse_pickled(parent)
        raise CheckpointError(f"{parent} holds no checkpoint yet. Train further, or name another run.")
    return folders[0]


def newest_valid(run: Path, before: int | None = None) -> tuple[Path | None, list[tuple[Path, str]]]:
    """Return the newest valid step folder (of steps below `before`), and the skipped ones with reasons."""
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
