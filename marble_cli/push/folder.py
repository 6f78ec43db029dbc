"""Write the folder that `marble push` uploads: LoRA, model card, configuration, report and pictures."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from marble_cli.checkpoint import manifest, store
from marble_cli.checkpoint.export import LORA_FILES, export
from marble_cli.checkpoint.formats import ExportFormat
from marble_cli.config.compose import load_resolved
from marble_cli.errors import CheckpointError, RequestError
from marble_cli.files import check_writable, write_whole, writing
from marble_cli.metrics.history import History
from marble_cli.metrics.samples import KeptSample, read_samples
from marble_cli.paths import expand
from marble_cli.push.anonymous import anonymous_config, copy_run
from marble_cli.push.base_model import describe_base
from marble_cli.push.card import Picture, write_card
from marble_cli.report.elements import some
from marble_cli.report.page import render
from marble_cli.report.reading import Run, read_run

CARD, CONFIG, REPORT, IMAGES = "README.md", "config.yaml", "report.html", "images"
LORA = LORA_FILES[ExportFormat.diffusers]  # written first, so that every folder of a push has it
ENTRIES = (CARD, CONFIG, REPORT, IMAGES, LORA)
PICTURES = 6  # on a card at most


def write_folder(target: str, repo: str, folder: Path) -> Path:
    """Write what is uploaded of a run's LoRA to `repo`, and nothing that names the machine or its user.

    Args:
        target: a run or a checkpoint.
        repo: the hub id, as the card names it.
        folder: where to write; what an earlier push left there is replaced.

    Returns:
        The folder.

    Raises:
        CheckpointError: `target` is no run or checkpoint with its configuration, or it is damaged.
        RequestError: `target` holds no LoRA, or `folder` holds files that are not of a push.
        StorageError: the disk is full.
    """
    checkpoint, known = _resolve(target)
    file = checkpoint.parent.parent / "config.yaml"
    if not file.is_file():
        raise CheckpointError(f"{file} is missing. The card is written from it: copy it back.")
    config = load_resolved(file)
    _clear(folder)
    with writing(folder, "Choose another --output."):
        folder.mkdir(parents=True, exist_ok=True)
    export(target, folder)
    tree = anonymous_config(config)
    with tempfile.TemporaryDirectory(prefix="marble-push-") as scratch:
        copy = copy_run(file.parent, tree, Path(scratch))
        run = read_run(copy, copy.name)
        write_whole(folder / REPORT, render([run]))
        shown = _until(run, checkpoint.name, known.step)
        pictures = _copy_pictures(_pair(shown), folder / IMAGES)
    family = str((known.info.get("origin") or {}).get("family", ""))
    base = describe_base(config.model)
    write_whole(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(tree)))
    merged = known.info.get("merged")
    write_whole(folder / CARD, write_card(repo, config, base, family, known.step, shown, pictures, merged))
    return folder


def _resolve(target: str) -> tuple[Path, manifest.Manifest]:
    """Return the checkpoint that a target names, and its manifest; refuse what holds no LoRA of a run."""
    if target == "base":
        raise RequestError(
            "push base: the base model has no trained weights. Expected a checkpoint or a run."
        )
    path = expand("", target)
    if path.exists() and not store.is_checkpoint(path) and not any(path.glob("*/checkpoints")):
        raise CheckpointError(
            f"{target} is neither a run nor a checkpoint. marble push writes a card from what a run "
            "recorded. For a LoRA from elsewhere: marble export, then hf upload."
        )
    checkpoint = store.resolve(target)
    known = manifest.read(checkpoint)
    if store.weight_files("full")[0] in known.files:
        raise RequestError(
            f"{checkpoint} holds a whole transformer, and marble push publishes LoRAs. Expected a run with "
            "model.train=lora. For a transformer: marble export, then hf upload."
        )
    return checkpoint, known


def _clear(folder: Path) -> None:
    """Delete what an earlier push left in `folder`; anything else is refused, as it would be uploaded."""
    check_writable(folder, "--output ")
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"--output {folder} is a file. Expected a new or empty folder.")
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    names = [entry.name for entry in entries]
    strange = [name for name in names if name not in ENTRIES or LORA not in names]
    if strange:
        raise RequestError(
            f"--output {folder} holds {strange[0]}, which is not of a push. Expected a new or empty folder."
        )
    for entry in entries:
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _until(run: Run, checkpoint: str, step: int) -> Run:
    """Return what a run recorded until a checkpoint: later evaluations are of other weights."""
    held_out = [row for row in run.history.held_out if row["step"] <= step]
    history = History(run.history.train, held_out, run.history.truncated)
    own = run.evaluation is not None and str(run.evaluation.get("target")).endswith(f"/{checkpoint}")
    return replace(run, history=history, evaluation=run.evaluation if own else None)


def _pair(run: Run) -> list[Picture]:
    """Return pictures of the same prompts, kept of the last evaluation and of the one that it began with."""
    samples, steps = run.folder / "samples", [row["step"] for row in run.history.held_out]
    kept = {step: found for step in steps if (found := read_samples(samples, step))}
    if len(kept) < 2 or steps[-1] not in kept:
        return []
    first, last = min(kept), steps[-1]
    after = {one.index: one for one in kept[last]}
    both = [
        Picture(one.prompt, one, after[one.index], (first, last))
        for one in kept[first]
        if one.index in after and after[one.index].prompt == one.prompt
    ]
    return some(both, PICTURES)


def _copy_pictures(pictures: list[Picture], folder: Path) -> list[Picture]:
    """Copy the files of pictures into `folder`; return the pictures with the copies."""

    def copied(one: KeptSample, when: str) -> KeptSample:
        file = folder / f"{one.index:05d}-{when}{one.file.suffix}"
        with writing(file, "Choose another --output."):
            folder.mkdir(exist_ok=True)
            shutil.copyfile(one.file, file)
        return replace(one, file=file)

    return [
        replace(each, before=copied(each.before, "before"), after=copied(each.after, "after"))
        for each in pictures
    ]
