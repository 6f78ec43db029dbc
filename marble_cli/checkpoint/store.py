"""Step folders of a run: safetensors and one JSON manifest with the SHA-256 of every file.

A folder is written under a temporary name, flushed to disk and renamed: it exists whole or not at all. The
files of a LoRA are folded (`checkpoint.lora`). Tensors that folding rounds are kept beside the optimizer's
moments as well, so that `load` gives back to the bit what `save` was given.
"""

import logging
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
from marble_cli.files import FREE_SOME, fsync, write_whole, writing
from marble_cli.paths import expand

log = logging.getLogger("marble")

FOLDERS = {"lora": "lora", "full": "transformer"}  # of the trained weights, by what these are
WEIGHTS = {  # the names that diffusers looks for
    "lora": "pytorch_lora_weights.safetensors",
    "full": "diffusion_pytorch_model.safetensors",
}
HEADER = 100  # bytes, about, that a tensor takes in a file's header beside its name
BALANCE = "balance"  # the group of tensors that a balance with state remembers: whole numbers too
ROUNDED = "optimizer"  # the group that also holds the tensors that folding rounds: `PARAMETER|lora`, `|ema`


@dataclass
class TrainerState:
    """What the trainer needs beside the trained weights: named groups of tensors (one file each) and JSON-able `info`.

    `train` says what these weights are, `lora` or `full`; `scale` is a LoRA's alpha / rank, None if a
    checkpoint of format 1 does not state it.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    info: dict[str, Any]
    train: str = "lora"
    scale: float | None = 1.0


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

    Raises:
        StorageError: the disk is full, the folder cannot be written or reads back as something else, or a value is
            not finite; earlier checkpoints stay.
    """
    parent = run / "checkpoints"
    final = parent / f"step-{state.step:08d}"
    groups, header = _files(state, trained, ema)
    for name, tensors in groups.items():
        if bad := tensor_files.not_finite(tensors):
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
                entries = header if name in weight_files(state.train) else {}
                tensor_files.write(temporary / name, tensors, entries)
            manifests.write(temporary, state.step, state.info, sorted(groups), state.scale)
            if final.exists():
                shutil.rmtree(final)
            temporary.rename(final)
            fsync(parent)
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


def _files(
    state: TrainerState, trained: dict[str, Tensor], ema: dict[str, Tensor]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """Return the tensors of a step folder's files, by name, and the header of the files of weights."""
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
    """Read and verify the trainer's state, the trained weights and their moving average, as they were saved.

    Raises:
        CheckpointError: something is missing, altered, not finite, of a newer format, or no checkpoint at all.
    """
    manifest = manifests.read(folder)
    train = "full" if weight_files("full")[0] in manifest.files else "lora"
    for name in weight_files(train):
        if name not in manifest.files:
            raise CheckpointError(f"{folder / manifests.NAME} does not list {name}. {REMEDY}")
    manifests.check_files(folder, manifest)
    files = {
        group: tensor_files.read(folder / name, floats=group != BALANCE)
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
