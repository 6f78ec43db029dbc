"""`marble export`: write a checkpoint's weights for diffusers, peft or ComfyUI.

A LoRA is written with scale 1, so that every loader applies it alike. A whole network is for diffusers
only: `from_pretrained(..., subfolder="transformer")`, or `subfolder="unet"` of a UNet.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from marble_cli.checkpoint import lora, store, tensor_files
from marble_cli.checkpoint.comfyui import check_mapped, comfyui_names
from marble_cli.checkpoint.formats import ExportFormat
from marble_cli.checkpoint.manifest import REMEDY
from marble_cli.checkpoint.store import TrainerState
from marble_cli.errors import CheckpointError, RequestError, StorageError
from marble_cli.files import check_writable, write_whole, writing

LORA_FILES = {
    ExportFormat.diffusers: store.WEIGHTS["lora"],
    ExportFormat.peft: "adapter_model.safetensors",
    ExportFormat.comfyui: "comfyui_lora.safetensors",
}
PEFT_CONFIG = "adapter_config.json"
PEFT_PREFIX = "base_model.model."  # of every key, before the layer's name


def export(target: str, directory: Path, form: ExportFormat = ExportFormat.diffusers) -> Path:
    """Write the verified moving average of `target` to `directory`; return the file of weights.

    Raises:
        CheckpointError: the checkpoint is damaged or does not exist.
        StorageError: the disk is full.
        RequestError: `directory` already holds such a file, the format cannot hold the weights, or `target`
            is base.
    """
    if target == "base":
        raise RequestError(
            "export base: the base model has no trained weights. Expected a checkpoint or a run."
        )
    checkpoint = store.resolve(target)
    state, average = store.load_average(checkpoint)
    if state.train == "full":
        return _export_transformer(checkpoint, state, directory, form)
    return _export_lora(checkpoint, state, average, directory, form)


def _export_lora(
    checkpoint: Path, state: TrainerState, average: dict[str, Tensor], directory: Path, form: ExportFormat
) -> Path:
    lora.check(average, checkpoint / store.weight_files("lora")[1])
    if state.scale is None:
        raise CheckpointError(f"{checkpoint} does not state the alpha of its LoRA. {REMEDY}")
    family = _read_provenance(state.info).get("family")
    weights = lora.folded(average, state.scale)
    return write_lora(weights, family if isinstance(family, str) else None, directory, form)


def write_lora(
    weights: Mapping[str, Tensor], family: str | None, directory: Path, form: ExportFormat
) -> Path:
    """Write a LoRA to `directory`; return the file of weights.

    Args:
        weights: A [rank, in] and B [out, rank] of every layer, of one rank and scale 1, by the names of
            `Policy.trained_state`.
        family: the class in `policy.families` of the model, if known; decides what ComfyUI can load.
        directory: made if it does not exist.
        form: the loader that reads the file.

    Raises:
        StorageError: the disk is full.
        RequestError: `directory` already holds such a file, or the format cannot hold the weights.
    """
    header = lora.header(weights) if form is ExportFormat.diffusers else {}
    if form is ExportFormat.comfyui:
        check_mapped(lora.layers(weights), family)
        weights = comfyui_names(weights)
    texts = {}
    if form is ExportFormat.peft:
        entries = {"peft_type": "LORA", "inference_mode": True, **lora.settings(weights)}
        texts[directory / PEFT_CONFIG] = entries
        weights = {PEFT_PREFIX + lora.layer_key(key): value for key, value in weights.items()}
    file = directory / LORA_FILES[form]
    with _exporting([file], texts, sum(value.nbytes for value in weights.values())):
        tensor_files.write(file, weights, header)
    return file


def _export_transformer(checkpoint: Path, state: TrainerState, directory: Path, form: ExportFormat) -> Path:
    if form is not ExportFormat.diffusers:
        raise RequestError(
            f"--format {form.value}: {checkpoint} holds a whole transformer, and this format is for LoRAs. "
            "Expected --format diffusers, or a checkpoint of a run with model.train=lora."
        )
    sources = sorted((checkpoint / "ema").glob(f"*{tensor_files.SUFFIX}"))
    unet = _read_provenance(state.info).get("network") == "unet"
    folder = directory / ("unet" if unet else store.FOLDERS[state.train])
    files = {folder / source.name: source for source in sources}
    texts = {folder / "config.json": transformer_config(state.info, checkpoint)}
    named = next(iter(files))
    if len(files) > 1:
        named = folder / f"{store.WEIGHTS[state.train]}.index.json"
        texts[named] = _index(sources)
    with _exporting(list(files), texts, sum(source.stat().st_size for source in sources)):
        for file, source in files.items():
            shutil.copyfile(source, file)
    return named


def _index(parts: Sequence[Path]) -> dict[str, Any]:
    """Return the index by which diffusers finds the tensors of a model in several files."""
    found = {part.name: tensor_files.read(part, finite=False)[0] for part in parts}
    size = sum(tensor.nbytes for tensors in found.values() for tensor in tensors.values())
    places = {key: name for name, tensors in found.items() for key in tensors}
    return {"metadata": {"total_size": size}, "weight_map": places}


@contextmanager
def _exporting(files: Sequence[Path], texts: Mapping[Path, Mapping[str, Any]], size: int) -> Iterator[None]:
    """Check that `files` may be written, run the block that writes them, then write what describes them.

    A failure leaves nothing behind.

    Args:
        files: the files of weights, in one folder.
        texts: the contents of JSON files next to them, by path.
        size: bytes that `files` need, about.

    Raises:
        RequestError: one of the files exists, or their folder cannot be written.
        StorageError: the disk is full.
    """
    if existing := [path for path in (*files, *texts) if path.exists()]:
        raise RequestError(f"{existing[0]} exists and is not overwritten. Choose another folder.")
    folder = files[0].parent
    check_writable(folder, "")
    with writing(files[0], "Choose another folder.", size):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            yield
            for path, content in texts.items():
                write_whole(path, json.dumps(content, indent=2) + "\n")
        except (OSError, SafetensorError, StorageError):
            for path in (*files, *texts):
                path.unlink(missing_ok=True)
            raise


def _read_provenance(info: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a checkpoint states about its weights' model; empty in older checkpoints."""
    provenance = info.get("origin")
    return provenance if isinstance(provenance, dict) else {}


def transformer_config(info: Mapping[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Return the config.json for diffusers of the whole transformer in a checkpoint.

    Raises:
        CheckpointError: the checkpoint has none, or it names no class.
    """
    config = _read_provenance(info).get("transformer")
    name = config.get("_class_name") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(name, str) or not name.isidentifier():
        raise CheckpointError(
            f"{checkpoint} is damaged: its transformer's configuration is {str(config)[:60]!r}. "
            f"Expected an object with the class of the transformer. {REMEDY}"
        )
    return config
