"""How large a model is, read off its configuration files: no weight is loaded or fetched."""

import importlib
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn

from marble_cli.config.schema import LoraConfig, ModelConfig, Train
from marble_cli.policy.base import ModelSize
from marble_cli.policy.source import (
    DTYPES,
    check_fit,
    described,
    find_family,
    image_tokens,
    networks,
    read_json,
    reading,
)
from marble_cli.policy.trainable.blocks import repeated_blocks
from marble_cli.policy.trainable.lora import add_adapter


def model_size(model: ModelConfig) -> ModelSize | None:
    """Sizes of a model whose configuration files are on this machine; None if they are not.

    Raises:
        RequestError: the folder holds no pipeline of a supported family, or the resolution does not fit it.
        ConfigError: the guidance, the precision, the length of prompts or the LoRA targets do not fit it.
    """
    folder = described(model.path)
    if folder is None:
        return None
    with reading(model):
        index = read_json(folder / "model_index.json")
        family = find_family(model, index)
        parts = {
            name: _skeleton(folder / name, *kind) for name, kind in networks(model, family, index).items()
        }
        transformer, vae = parts["transformer"], parts["vae"]
    check_fit(model, family, transformer.config)
    itemsize = DTYPES[model.precision].itemsize
    parameters = _count(transformer)
    encoders = sum(_count(part) for name, part in parts.items() if name.startswith("text_encoder"))
    blocks = repeated_blocks(transformer)
    features = sum(
        layer.out_features for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear)
    )
    return ModelSize(
        parameters,
        parameters if model.train is Train.full else _count_lora(transformer, model.lora),
        image_tokens(model, family, vae.config, transformer.config),
        (parameters + _count(vae)) * itemsize,
        encoders * itemsize,
        len(blocks),
        features,
    )


def _skeleton(folder: Path, library: str, name: str) -> Any:
    """A component without storage, as its config.json describes it."""
    component = getattr(importlib.import_module(library), name)
    config = read_json(folder / "config.json")
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about initialising parameters that have no storage
        if library == "diffusers":
            return component.from_config(config)
        return component(component.config_class.from_dict(config))


def _count_lora(transformer: nn.Module, lora: LoraConfig) -> int:
    """Parameters of one adapter, which `transformer` then has."""
    config = peft.LoraConfig(r=lora.rank, target_modules=list(lora.target_modules))
    add_adapter(transformer, config, "default")
    return sum(p.numel() for name, p in transformer.named_parameters() if "lora_" in name)


def _count(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())
