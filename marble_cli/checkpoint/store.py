"""Save and load step folders: safetensors files and one JSON manifest with the SHA-256 of every file.

A folder is written under a temporary name, flushed to disk and renamed: it exists whole or not at all. The
files of a LoRA are folded (`checkpoint.lora`). Tensors that folding rounds are also kept exactly, in the
optimizer's file, so that `load` returns bit for bit what was passed to `save`.
"""

import copy
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from marble_cli.checkpoint import lora
from marble_cli.checkpoint import manifest as manifests
from marble_cli.checkpoint.manifest import REMEDY
from marble_cli.checkpoint.parts import BALANCE, Part, Unwritten, gather, read, split, whole_name, write_parts
from marble_cli.checkpoint.pickle_guard import refuse_pickled
from marble_cli.checkpoint.step_folders import place, pointed, read_pointer, retain, step_of, steps
from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import CheckpointError, StorageError
from marble_cli.files import FREE_SOME, fsync, remove, write_whole, writing
from marble_cli.paths import expand

FOLDERS = {"lora": "lora", "full": "transformer"}  # of the trained weights, by their kind
WEIGHTS = {  # the names that diffusers looks for
    "lora": "pytorch_lora_weights.safetensors",
    "full": "diffusion_pytorch_model.safetensors",
}
# The group that also holds the tensors that folding rounds, as `PARAMETER|lora` and `PARAMETER|ema`.
ROUNDED = "optimizer"


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


def arrange(
    state: TrainerState, trained: dict[str, Tensor], ema: dict[str, Tensor], ranks: Ranks | None = None
) -> Unwritten:
    """Arrange the files of a step folder, without copying a tensor.

    Args:
        state: the trainer's state; tensors of a LoRA are whole, those of full weights may be sharded.
        trained: the trained weights, by diffusers' names.
        ema: their moving average, by the same names.
        ranks: the ranks that hold the tensors, all of which must call this; this process alone if None.
    """
    parts = _arrange_files(state, trained, ema)
    size, rounds = sum(part.size for part in parts), gather(parts, ranks or Ranks.alone())
    return Unwritten(state.step, copy.deepcopy(state.info), state.scale, size, rounds)


def save(
    run: Path,
    state: TrainerState,
    trained: dict[str, Tensor],
    ema: dict[str, Tensor],
    *,
    keep_last: int,
    best: bool,
    keep_every: int = 0,
    ranks: Ranks | None = None,
) -> Path:
    """Arrange and write a step folder; arguments and errors are those of `arrange` and `write`."""
    unwritten = arrange(state, trained, ema, ranks)
    return write(run, unwritten, keep_last=keep_last, best=best, keep_every=keep_every, ranks=ranks)


def write(
    run: Path,
    unwritten: Unwritten,
    *,
    keep_last: int,
    best: bool,
    keep_every: int = 0,
    ranks: Ranks | None = None,
) -> Path:
    """Write a step folder, verify it, point `latest` (and `best`) at it and delete old step folders.

    Args:
        run: the run's folder.
        unwritten: the step folder.
        keep_last: how many of the newest valid step folders to keep; the best is always kept.
        best: whether this is the best checkpoint so far.
        keep_every: steps that are multiples of this are never deleted; 0 for none.
        ranks: the ranks that write, all of which must call this; this process alone if None.

    Raises:
        StorageError: the disk is full, the folder cannot be written, it reads back differently, or a value is
            not finite. Earlier checkpoints stay.
        PeerError: another rank raised that.
    """
    ranks, step = ranks or Ranks.alone(), unwritten.step
    final = place(run, step)
    parent = final.parent
    temporary = parent / f".{final.name}.tmp"
    advice = f"{FREE_SOME} Earlier checkpoints are untouched."

    @contextmanager
    def together() -> Iterator[None]:
        with ranks.raise_together(), writing(final, advice, unwritten.size):
            yield

    try:
        with together():
            if ranks.is_main:
                parent.mkdir(parents=True, exist_ok=True)
                remove(temporary)
        written = write_parts(temporary, step, unwritten.rounds, together)
        listing = {name: entry for own in ranks.all_gather_json(written) for name, entry in own.items()}
        with together():
            if ranks.is_main:
                version = 3 if any(whole_name(name) != name for name in listing) else 2
                manifests.write(temporary, step, unwritten.info, listing, unwritten.scale, version)
                if final.exists():
                    shutil.rmtree(final)
                temporary.rename(final)
                fsync(parent)
    except Exception:
        if ranks.is_main:
            remove(temporary)
        raise
    with ranks.raise_together():
        if ranks.is_main or written:
            _verify(final, written)
    with ranks.raise_together():
        if ranks.is_main:
            for pointer in ("latest", "best") if best else ("latest",):
                write_whole(parent / pointer, final.name + "\n")
            retain(final, keep_last, keep_every)
    return final


def _verify(folder: Path, written: Collection[str]) -> None:
    """Read back what this rank has written."""
    try:
        manifests.check_files(folder, manifests.read(folder), written)
    except CheckpointError as error:
        raise StorageError(
            f"{folder} reads back differently from what was written. Earlier checkpoints are untouched. "
            f"Check the disk. {error}"
        ) from error


def _arrange_files(state: TrainerState, trained: dict[str, Tensor], ema: dict[str, Tensor]) -> list[Part]:
    """Return the files of a step folder."""
    groups, header = dict(state.tensors), dict[str, str]()
    if state.train == "lora":
        assert state.scale is not None
        kept = lora.rounded(trained, state.scale, "lora") | lora.rounded(ema, state.scale, "ema")
        if kept:
            groups[ROUNDED] = groups.get(ROUNDED, {}) | kept
        header = lora.header(trained)
        trained, ema = lora.folded(trained, state.scale), lora.folded(ema, state.scale)
    # The state of a balance differs among ranks: only the main one solves. The first file is the main rank's.
    first = split(f"{BALANCE}.safetensors", groups.pop(BALANCE), {}) if BALANCE in groups else []
    weights = [
        part
        for name, tensors in zip(weight_files(state.train), (trained, ema), strict=True)
        for part in split(name, tensors, header)
    ]
    others = [part for name, tensors in groups.items() for part in split(f"{name}.safetensors", tensors, {})]
    return [*first, *weights, *others]


def load(
    folder: Path, share: tuple[int, int] = (0, 1)
) -> tuple[TrainerState, dict[str, Tensor], dict[str, Tensor]]:
    """Read and verify the trainer's state, the trained weights and their moving average, as they were saved.

    Tensors are mapped from the files: only what is used of them takes memory.

    Args:
        folder: the step folder.
        share: which of how many shares of the files of full weights to verify; all files are read.

    Raises:
        CheckpointError: a file is missing, altered, not finite or of a newer format, or `folder` is no
            checkpoint.
    """
    manifest, train = _read_manifest(folder)
    index, count = share if train == "full" else (0, 1)
    names = sorted(manifest.files)
    files = read(folder, manifest, names, names[index::count])
    (trained, header), (ema, _) = (files.pop(name) for name in weight_files(train))
    groups = {name.removesuffix(".safetensors"): tensors for name, (tensors, _) in files.items()}
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


def load_average(folder: Path) -> tuple[TrainerState, dict[str, Tensor]]:
    """Read and verify the moving average of the trained weights; of full weights, no other file is read.

    Returns:
        The trainer's state, without tensors if weights are full, and the moving average.

    Raises:
        CheckpointError: as `load`; of other files than the average's, only their sizes are checked.
    """
    manifest, train = _read_manifest(folder)
    if train == "lora":  # a LoRA's average may take numbers from other files
        state, _, ema = load(folder)
        return state, ema
    name = weight_files(train)[1]
    names = sorted(file for file in manifest.files if whole_name(file) == name)
    files = read(folder, manifest, names, names)
    return TrainerState(manifest.step, {}, manifest.info, train, manifest.scale), files[name][0]


def _read_manifest(folder: Path) -> tuple[manifests.Manifest, str]:
    """Read the manifest of a step folder; return it and the kind of the trained weights."""
    manifest = manifests.read(folder)
    names = {whole_name(name) for name in manifest.files}
    train = "full" if weight_files("full")[0] in names else "lora"
    for name in weight_files(train):
        if name not in names:
            raise CheckpointError(f"{folder / manifests.NAME} does not list {name}. {REMEDY}")
    return manifest, train


def is_checkpoint(path: Path) -> bool:
    """Tell whether a path looks like a checkpoint, a pointer to one, or a run."""
    return (path / manifests.NAME).is_file() or (path / "checkpoints").is_dir() or pointed(path) is not None


def resolve(spec: str) -> Path:
    """Return the step folder that a path names: itself, the latest of a run, or that of `best` or `latest`.

    Raises:
        CheckpointError: there is none, or it is pickled.
    """
    path = expand("", spec)
    if (path / manifests.NAME).is_file():
        return path
    if (folder := pointed(path)) is not None:
        return folder
    parent = path / "checkpoints"
    if not parent.is_dir():
        if path.exists():
            refuse_pickled(path)
        elif path.name == "best" and path.parent.name == "checkpoints" and path.parent.is_dir():
            raise CheckpointError(
                f"{spec}: no evaluation has exceeded the run's start yet. Expected latest in its place, or "
                "a step."
            )
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
    name = read_pointer(path, "latest")
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
