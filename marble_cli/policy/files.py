"""Whether a pipeline's folder holds all that a run will load, told without loading a weight."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from marble_cli.config.schema import ModelConfig
from marble_cli.policy.base import Family
from marble_cli.policy.source import find_family, local_folder, networks, read_json, reading, tell_revision
from marble_cli.policy.tokenizers import check_tokenizers, read_tokenizers

STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}  # of weight files, by library
INDEX = ".safetensors.index"


def check_files(model: ModelConfig) -> None:
    """The folder of the model, where it has one here, holds weights of every network, and fitting tokenizers.

    Raises:
        RequestError: something is missing or damaged; the message names the folder.
    """
    folder = local_folder(model.path)
    if folder is None:
        return
    tell_revision(model)
    with reading(model):
        index = read_json(folder / "model_index.json")
        family = find_family(model, index)
        check_weights(folder, model, family, index)
        encoders = {
            name: _config(folder / name, *kind)
            for name, kind in networks(model, family, index).items()
            if name.startswith("text_encoder")
        }
        check_tokenizers(read_tokenizers(folder, model, family, index), encoders, str(folder))


def _config(folder: Path, library: str, name: str) -> Any:
    """The configuration of a text encoder."""
    return getattr(importlib.import_module(library), name).config_class.from_dict(
        read_json(folder / "config.json")
    )


def check_weights(folder: Path, model: ModelConfig, family: type[Family], index: Mapping[str, Any]) -> None:
    """Every network of the pipeline has its weights in `folder`, whole as far as their headers tell.

    Raises:
        ValueError: some are missing, damaged, pickled, or of another variant than `model.variant`.
    """
    for name, (library, _) in networks(model, family, index).items():
        for file in _weights(folder / name, STEMS.get(library, "model"), model.variant):
            if not file.is_file():
                raise ValueError(f"{file} is missing, which {folder / name} lists as a part of its weights")
            try:
                with safe_open(file, framework="pt"):
                    pass
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{file} is damaged or cut short ({error})") from error


def _weights(folder: Path, stem: str, variant: str | None) -> list[Path]:
    """The files of a network's weights. A network without the variant has those without one, as in diffusers.

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
    others = variants(folder, stem)
    if others:
        raise ValueError(
            f"{folder} holds weights of the variant {' and '.join(others)} alone. Set model.variant={others[0]}"
        )
    pickled = next((file.name for file in sorted(folder.glob(f"{stem}*.bin"))), None)
    there = f"{pickled}, which is pickled and is not read" if pickled else "no weights"
    raise ValueError(f"{folder} holds {there}: {stem}.safetensors is missing")


def variants(folder: Path, stem: str) -> list[str]:
    """The variants in which `folder` holds weights, e.g. fp16."""
    whole = {
        file.name.split(".")[1] for file in folder.glob(f"{stem}.*.safetensors") if "-of-" not in file.name
    }
    parts = {file.name.split(".")[-2] for file in folder.glob(f"{stem}{INDEX}.*.json")}
    return sorted(whole | parts)
