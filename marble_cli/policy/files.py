"""Check that a pipeline's folder holds all files that a run will load, without loading a weight."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from marble_cli.config.schema import ModelConfig
from marble_cli.policy.base import Family
from marble_cli.policy.source import (
    explain_load_errors,
    find_family,
    list_networks,
    local_folder,
    read_json,
    warn_unused_revision,
)
from marble_cli.policy.tokenizers import check_tokenizers, read_tokenizers

if TYPE_CHECKING:
    from transformers import PretrainedConfig

STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}  # of weight files, by library
INDEX = ".safetensors.index"


def check_files(model: ModelConfig) -> None:
    """Check that a local model folder has the weights of every network, and tokenizers that fit.

    A model on the hub is not checked.

    Raises:
        RequestError: something is missing or damaged; the message names the folder.
    """
    folder = local_folder(model.path)
    if folder is None:
        return
    warn_unused_revision(model)
    with explain_load_errors(model):
        index = read_json(folder / "model_index.json")
        family = find_family(model, index)
        check_weights(folder, model, family, index)
        encoders = {
            name: _encoder_config(folder / name, *kind)
            for name, kind in list_networks(model, family, index).items()
            if name.startswith("text_encoder")
        }
        check_tokenizers(read_tokenizers(folder, model, family, index), encoders, str(folder))


def _encoder_config(folder: Path, library: str, name: str) -> "PretrainedConfig":
    encoder = getattr(importlib.import_module(library), name)
    config: PretrainedConfig = encoder.config_class.from_dict(read_json(folder / "config.json"))
    return config


def check_weights(folder: Path, model: ModelConfig, family: type[Family], index: Mapping[str, Any]) -> None:
    """Check that `folder` holds the weights of every network of the pipeline; only file headers are read.

    Raises:
        ValueError: some are missing, damaged, pickled, or of another variant than `model.variant`.
    """
    for name, (library, _) in list_networks(model, family, index).items():
        for file in _weight_files(folder / name, STEMS.get(library, "model"), model.variant):
            if not file.is_file():
                raise ValueError(f"{file} is missing, which {folder / name} lists as a part of its weights")
            try:
                with safe_open(file, framework="pt"):
                    pass
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{file} is damaged or cut short ({error})") from error


def _weight_files(folder: Path, stem: str, variant: str | None) -> list[Path]:
    """List the files of a network's weights.

    A network that lacks the variant uses its plain weights, as in diffusers.

    Raises:
        ValueError: there are none, or only some of another variant.
    """
    for mark in (f".{variant}", "") if variant else ("",):
        whole, index = folder / f"{stem}{mark}.safetensors", folder / f"{stem}{INDEX}{mark}.json"
        if index.is_file():
            parts = read_json(index).get("weight_map")
            return (
                [folder / part for part in sorted(set(parts.values()))]
                if isinstance(parts, dict)
                else [index]
            )
        if whole.is_file():
            return [whole]
    others = list_variants(folder, stem)
    if others:
        raise ValueError(
            f"{folder} holds weights of the variant {' and '.join(others)} alone. "
            f"Set model.variant={others[0]}"
        )
    pickled = next((file.name for file in sorted(folder.glob(f"{stem}*.bin"))), None)
    present = f"{pickled}, which is pickled and is not read" if pickled else "no weights"
    raise ValueError(f"{folder} holds {present}: {stem}.safetensors is missing")


def list_variants(folder: Path, stem: str) -> list[str]:
    """Return the variants in which `folder` holds weights, e.g. fp16."""
    single = {
        file.name.split(".")[1] for file in folder.glob(f"{stem}.*.safetensors") if "-of-" not in file.name
    }
    sharded = {file.name.split(".")[-2] for file in folder.glob(f"{stem}{INDEX}.*.json")}
    return sorted(single | sharded)
