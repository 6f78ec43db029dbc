"""Compute a model's sizes from its configuration files: no weight is loaded or fetched."""

import importlib
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache, partial
from math import prod
from typing import Any, TypeVar

import diffusers
import peft
import torch
from diffusers import SchedulerMixin
from torch import nn

from marble_cli.config.enums import Offload, Quantization, Switch, Train
from marble_cli.config.schema import LoraConfig, ModelConfig
from marble_cli.policy.base import Family
from marble_cli.policy.cost import decoding_flop, pass_cost, velocity_bytes
from marble_cli.policy.decoding import count_decoding
from marble_cli.policy.diffusers_types import Network
from marble_cli.policy.editing import as_editing, image_size
from marble_cli.policy.model_size import Drawing, ModelSize
from marble_cli.policy.quantization import quantizable
from marble_cli.policy.source import (
    DTYPES,
    check_model_settings,
    config_folder,
    count_image_tokens,
    explain_load_errors,
    find_family,
    list_networks,
    model_file,
    read_json,
)
from marble_cli.policy.trainable.blocks import repeated_blocks
from marble_cli.policy.trainable.lora import add_adapter
from marble_cli.policy.trainable.lora_layer import LoraLinear
from marble_cli.policy.video import as_video

# A training pass keeps at most about twice the inputs and outputs of all layers.
KEPT_PER_WIDTH = 4
Counted = TypeVar("Counted")
_SIZES: dict[str, ModelSize] = {}  # by everything that they depend on


def model_size(
    model: ModelConfig, evaluated: int | str | None = None, *, pictures: int = 1
) -> ModelSize | None:
    """Return a model's sizes; None if its configuration files are not on this machine.

    They are remembered: the cells of a sweep often have the same model, and many settings change no size.

    Args:
        model: the configuration group.
        evaluated: `evaluation.resolution`, which is checked too.
        pictures: of a prompt, for models that start from pictures; of several, each counts as large as an
            image, which they are at most.

    Raises:
        RequestError: the folder holds no pipeline of a supported family, or a resolution does not fit it.
        ConfigError: the guidance, the precision, the length of prompts or the LoRA targets do not fit it.
    """
    folder = config_folder(model.path)
    if folder is None:
        return None
    with explain_load_errors(model):
        index = read_json(folder / "model_index.json")
        family = find_family(model, index)
        names = list_networks(model, family, index)
        configs = {name: read_json(folder / name / "config.json") for name in names}
        if (file := folder / "scheduler" / "scheduler_config.json").is_file():
            configs["scheduler"] = read_json(file)
    # A copy, as the cost is counted later, and the caller may change the configuration. How weights are kept
    # changes no size.
    alike = replace(model, quantization=Quantization.none, offload=Offload.none, embedding_cache=None)
    alike.gradient_checkpointing = alike.compile = Switch.auto
    known = repr((alike, evaluated, pictures, index, configs))
    if known not in _SIZES:
        _SIZES[known] = _compute_size(alike, evaluated, pictures, family, index, configs)
    return _SIZES[known]


def _compute_size(
    model: ModelConfig,
    evaluated: int | str | None,
    pictures: int,
    family: type[Family],
    index: Mapping[str, Any],
    configs: Mapping[str, dict[str, Any]],
) -> ModelSize:
    judged = replace(model, resolution=model.resolution if evaluated is None else evaluated)
    with explain_load_errors(model):
        vae_config, config = (_complete(configs[name], *index[name]) for name in ("vae", family.network))
        check_model_settings(model, family, config)
        tokens = count_image_tokens(model, family, vae_config, config)
        count_image_tokens(judged, family, vae_config, config, "evaluation.resolution")
        parts = {name: make_skeleton(config, *index[name]) for name, config in configs.items()}
        network, vae = parts[family.network], parts["vae"]
    nn.Module.to(vae, DTYPES[model.precision])  # past the warnings of diffusers' own
    parameters, blocks = _count(network), repeated_blocks(network)
    encoders = [part for name, part in parts.items() if name.startswith("text_encoder")]
    rounded, in_each = sum(map(_rounded, blocks)), [_count(block) for block in blocks]
    if model.train is Train.lora:
        network.requires_grad_(False)
    weights = [parameter.shape for parameter in network.parameters()]
    adapter = [] if model.train is Train.full else _lora_shapes(network, model.lora)

    pipeline = assemble(index, parts)
    made: Family = family(pipeline, model)
    dtype = DTYPES[model.precision]
    prompt_tokens = count_prompt_tokens(model, family, parts)
    all_tokens = tokens + prompt_tokens
    if editing := as_editing(made):
        image = image_size(editing)
        larger = prod(editing.condition_shape(*image)) / prod(editing.latent_shape)
        all_tokens += pictures * (editing.picture_tokens(*image) + math.ceil(tokens * larger))

    def with_adapter(count: Callable[..., Counted], of: Family) -> Counted:
        if adapter:
            _add_lora(network, model.lora)
        return count(of, network, prompt_tokens, dtype, pictures)

    def drawing(of: Family, drawn: ModelConfig) -> Drawing:
        velocity = cache(partial(with_adapter, velocity_bytes, of))
        return Drawing(velocity, count_decoding(of, drawn, vae.dtype))

    return ModelSize(
        network=parameters,
        trained=sum(map(prod, adapter)) if adapter else parameters,
        tokens=tokens,
        vae=_count(vae),
        encoders=sum(map(_count, encoders)),
        rounded=rounded,
        encoders_rounded=sum(map(_rounded, encoders)),
        blocks=len(blocks),
        in_blocks=sum(in_each),
        largest_block=max(in_each, default=0),
        most_kept=KEPT_PER_WIDTH * all_tokens * _widths([*weights, *adapter]) * dtype.itemsize,
        count_cost=partial(with_adapter, pass_cost, made),
        drawing=(of_run := drawing(made, model)),
        judged=of_run if judged == model else drawing(family(pipeline, judged), judged),
        count_decoding=partial(decoding_flop, vae, made.latent_shape) if as_video(made) else None,
    )


def network_skeleton(model: ModelConfig) -> tuple[type, str, Network]:
    """Return the class of a model's pipeline, and its network's name and the network without storage.

    Two JSON files are fetched if the model is on the hub.

    Raises:
        RequestError: the model is no pipeline of a supported family, or cannot be reached.
    """
    with explain_load_errors(model):
        index = read_json(model_file(model, "model_index.json"))
        name = find_family(model, index).network
        config = read_json(model_file(model, f"{name}/config.json"))
        network: Network = make_skeleton(config, *index[name])
        return getattr(diffusers, index["_class_name"]), name, network


def make_skeleton(config: dict[str, Any], library: str, name: str) -> Any:
    """Make a component without storage from the content of its config.json."""
    component = getattr(importlib.import_module(library), name)
    if issubclass(component, SchedulerMixin):  # it computes with its tensors
        return component.from_config(config)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about initialising parameters that have no storage
        if library == "diffusers":
            return component.from_config(config)
        return component(component.config_class.from_dict(config))


def _complete(config: Mapping[str, Any], library: str, name: str) -> dict[str, Any]:
    """Return the content of a component's config.json, and what its class takes for absent keys."""
    component = getattr(importlib.import_module(library), name)
    parameters = inspect.signature(component.__init__).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
    return {**defaults, **config}


def assemble(index: Mapping[str, Any], parts: Mapping[str, Any]) -> Any:
    """Make a pipeline of its networks and its scheduler alone."""
    kind = getattr(diffusers, index["_class_name"])
    names = inspect.signature(kind.__init__).parameters.keys() & index.keys()
    return kind(**{name: parts.get(name) for name in names})


def count_prompt_tokens(model: ModelConfig, family: type[Family], parts: Mapping[str, Any]) -> int:
    """Return the length of a prompt's embeddings, which begin with CLIP's tokens in some families."""
    clip: int = 0 if family.text == "long" else parts["text_encoder"].config.max_position_embeddings
    return clip + model.max_sequence_length


def _rounded(part: nn.Module) -> int:
    """Count the weights of a network or block that quantisation rounds."""
    return sum(layer.weight.numel() for _, _, layer in quantizable(part))


def _lora_shapes(network: Network, lora: LoraConfig) -> list[torch.Size]:
    """Return the shapes of an adapter's matrices, which is added only where peft may refuse it.

    To add it takes most of the time that the sizes of a large model take.
    """
    ends = tuple(f".{target}" for target in lora.target_modules)
    layers = [module for name, module in network.named_modules() if f".{name}".endswith(ends)]
    if layers and all(isinstance(layer, nn.Linear) for layer in layers):
        shapes = [layer.weight.shape for layer in layers]
        return [torch.Size(pair) for o, i in shapes for pair in ((lora.rank, i), (o, lora.rank))]
    _add_lora(network, lora)
    return [parameter.shape for name, parameter in network.named_parameters() if "lora_" in name]


def _add_lora(network: Network, lora: LoraConfig) -> None:
    """Add an adapter without storage to `network`, if it has none."""
    if getattr(network, "peft_config", None):
        return
    config = peft.LoraConfig(r=lora.rank, target_modules=list(lora.target_modules), init_lora_weights=False)
    config._register_custom_module({nn.Linear: LoraLinear})
    with torch.device("meta"):
        add_adapter(network, config, "default")


def _widths(shapes: Iterable[torch.Size]) -> int:
    """Add up the widths of the inputs and outputs of all layers, by the shapes of their parameters."""
    return sum(sum(shape[:2]) for shape in shapes if len(shape) > 1)


def _count(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())
