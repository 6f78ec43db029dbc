"""Convert a LoRA of another program to the model's own layers, at scale 1.

An alpha in a tensor is multiplied into its layer's B, as kohya means it. Names that are not the model's own
are converted by diffusers' loader of the family. Rank and alpha in the file's header or adapter_config.json
mean what they mean to peft, which builds the adapter on a skeleton of the network.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.utils import convert_unet_state_dict_to_peft
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from marble_cli.config.schema import LoraConfig, ModelConfig
from marble_cli.errors import CheckpointError
from marble_cli.policy.diffusers_types import Network
from marble_cli.policy.size import network_skeleton

HEADER = "lora_adapter_metadata"  # header entry with diffusers' own statement of rank and alpha
NAME = "foreign"
# The settings of peft's `LoraConfig` that decide what a LoRA adds to a layer.
STATED = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
OUTER = re.compile(
    r"^lora_(unet|transformer)_|^(base_model\.model\.)?(transformer\.|unet\.|diffusion_model\.)?"
)
A, B = ".lora_A.weight", ".lora_B.weight"
PARTS = {
    re.compile(r"\.(lora_A|lora_down|lora\.down)(\.\w+)?\.weight$"): A,
    re.compile(r"\.(lora_B|lora_up|lora\.up)(\.\w+)?\.weight$"): B,
}
ALPHA = ".alpha"
# With these values of its setting, peft first changes the weights that it adds the LoRA to.
BEGUN = "init_lora_weights"
SUBTRACTED = ("pissa", "olora", "corda", "loftq", "lora_ga")
CHANGED = (RuntimeError, ValueError, TypeError, KeyError, AttributeError, ImportError, IndexError)


def convert_lora(
    tensors: Mapping[str, Tensor],
    header: Mapping[str, str],
    config: Mapping[str, Any] | None,
    model: ModelConfig,
    file: str,
) -> dict[str, Tensor]:
    """Return a LoRA with the keys of `Policy.trained_state` and scale 1; layers may differ in rank.

    Args:
        tensors: A, B and alpha of every layer, by the names of diffusers, peft, kohya or ComfyUI.
        header: the strings in the file's header.
        config: the content of adapter_config.json, if there is one.
        model: the configuration of the model that is to take the LoRA.
        file: the file's name, for messages.

    Raises:
        CheckpointError: a tensor fits no linear layer of the network; the message names the first.
        RequestError: the model's configuration cannot be read.
    """
    pipeline, name, network = network_skeleton(model)
    layers = {layer: part for layer, part in network.named_modules() if isinstance(part, nn.Linear)}
    with _explaining(file):
        tensors, alphas = _without_alphas(tensors, file)
        state, strange = _own_names(tensors, layers)
        if strange:
            convert = partial(_converted, pipeline, name, network)
            lost = _lost({**strange, **tensors}, alphas, convert)
            state, strange = _own_names(convert({**tensors, **alphas}), layers)
            strange = {**lost, **strange}
    for key, value in strange.items():
        raise CheckpointError(
            f"{file} does not fit {model.path}: {key} {list(value.shape)} belongs to no linear layer of its "
            f"{name}. Expected a LoRA of this model's {name}, without text encoders, DoRA, biases and norms."
        )
    _check_shapes(state, layers, file, model.path)
    stated = _stated(header, config, state, name, file)
    if alphas or stated is None:
        return {f"{name}.{key}": value.float() for key, value in state.items()}
    with _explaining(file):  # the skeleton has no storage, and neither has the adapter: only scales are read
        network.load_lora_adapter(
            {f"{name}.{key}": value for key, value in state.items()},
            prefix=name,
            metadata=stated,
            adapter_name=NAME,
            low_cpu_mem_usage=True,
        )
        return _folded(state, network, name)


def _without_alphas(tensors: Mapping[str, Tensor], file: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the matrices, at scale 1 where there are alphas, and the alphas of that scale: the ranks."""
    named = {pattern.sub(part, key): key for key in tensors for pattern, part in PARTS.items()}
    matrices = {key: value for key, value in tensors.items() if not key.endswith(ALPHA)}
    alphas = {}
    for key in (key for key in tensors if key not in matrices):
        a, b = (named.get(key.removesuffix(ALPHA) + part) for part in (A, B))
        if a is None or b is None:
            raise CheckpointError(
                f"{file} has {key} {list(tensors[key].shape)} and lacks the two matrices of its layer. "
                "Expected a LoRA, without LoHa and LoKr."
            )
        rank = len(tensors[a])
        matrices[b] = (tensors[b].double() * tensors[key].item() / rank).float()
        alphas[key] = torch.tensor(float(rank))
    return matrices, alphas


def _own_names(
    tensors: Mapping[str, Tensor], layers: Mapping[str, nn.Module]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return tensors as LAYER.lora_A.weight and LAYER.lora_B.weight, and those of no layer.

    kohya writes a layer's name with `_` for every dot.
    """
    flat = {name.replace(".", "_"): name for name in layers}
    own, strange = dict[str, Tensor](), dict[str, Tensor]()
    for key, value in tensors.items():
        part = next((pattern for pattern in PARTS if pattern.search(key)), None)
        stem = "" if part is None else OUTER.sub("", part.sub("", key), count=1)
        layer = stem if stem in layers else flat.get(stem)
        if part is None or layer is None or layer + PARTS[part] in own:
            strange[key] = value
        else:
            own[layer + PARTS[part]] = value
    return own, strange


def _converted(
    pipeline: type, name: str, network: Network, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Convert names by the loader that diffusers has for the family, and leave alphas out."""
    # Kohya numbers the blocks of SDXL's UNet through.
    known = {"unet_config": network.config} if name == "unet" else {}
    state = pipeline.lora_state_dict(dict(tensors), **known)  # type: ignore[attr-defined]
    if name == "unet":  # whose layers have names there from before peft; alphas come apart
        state = convert_unet_state_dict_to_peft(state[0])
    return {key: value for key, value in state.items() if not key.endswith(ALPHA)}


def _lost(
    tensors: Mapping[str, Tensor],
    alphas: Mapping[str, Tensor],
    convert: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    """Return the tensors that `convert` drops, unless they are zero: no part of them is in its answer."""
    tags = dict(enumerate(tensors, start=1))
    tagged = {key: torch.full_like(tensors[key], tag, dtype=torch.float) for tag, key in tags.items()}
    left = convert({**tagged, **alphas}).values()
    kept = {value.flatten()[0].item() for value in left if value.numel()}
    return {key: tensors[key] for tag, key in tags.items() if tag not in kept and tensors[key].float().any()}


def _check_shapes(state: Mapping[str, Tensor], layers: Mapping[str, nn.Linear], file: str, path: str) -> None:
    """Check that every layer has A [rank, in] and B [out, rank], and that there is one."""
    if not state:
        raise CheckpointError(f"{file} holds no LoRA: it has no tensors. Copy or fetch it again.")
    for key, value in state.items():
        layer, _, part = key.removesuffix(".weight").rpartition(".")
        other = f"{layer}.lora_{'B' if part == 'lora_A' else 'A'}.weight"
        if other not in state:
            raise CheckpointError(f"{file} has {key} and lacks {other}. Copy or fetch it again.")
        of, first = layers[layer], part == "lora_A"
        rank = (state[other].shape[-1 if first else 0] if state[other].dim() == 2 else 0) or "rank"
        expected = [rank, of.in_features] if first else [of.out_features, rank]
        if list(value.shape) != expected:
            raise CheckpointError(
                f"{file} does not fit {path}: {key} is {list(value.shape)}, and the model's layer takes "
                f"{expected}. Expected a LoRA of this model."
            )


def _stated(
    header: Mapping[str, str],
    config: Mapping[str, Any] | None,
    state: Mapping[str, Tensor],
    name: str,
    file: str,
) -> dict[str, Any] | None:
    """Return rank and alpha as adapter_config.json or the header states them, with diffusers' prefix."""
    try:
        entries = json.loads(header.get(HEADER, "{}")) if config is None else config
        found = {key: entries.get(f"{name}.{key}", entries.get(key)) for key in (*STATED, BEGUN)}
    except (ValueError, AttributeError, RecursionError):
        return None
    if str(found[BEGUN]).lower().startswith(SUBTRACTED):
        raise CheckpointError(
            f"{file} is no plain LoRA: {BEGUN}={found[BEGUN]} changed the weights that it is added to. "
            "Expected one that peft saved with `path_initial_model_for_weight_conversion`."
        )
    given = {f"{name}.{key}": found[key] for key in STATED if found[key] is not None}
    if f"{name}.r" not in given or f"{name}.lora_alpha" not in given:
        return None
    return given | {f"{name}.target_modules": [key.removesuffix(A) for key in state if key.endswith(A)]}


def _folded(state: Mapping[str, Tensor], network: nn.Module, name: str) -> dict[str, Tensor]:
    """Return every A, and every B multiplied by the scaling that peft gave to its layer."""
    adapters = {layer: part for layer, part in network.named_modules() if isinstance(part, BaseTunerLayer)}
    folded = {}
    for key, value in state.items():
        scale = adapters[key.removesuffix(B)].scaling[NAME] if key.endswith(B) else 1.0
        folded[f"{name}.{key}"] = (value.double() * scale).float()
    return folded


def lora_settings(state: Mapping[str, Tensor]) -> LoraConfig:
    """Return the settings of an adapter that holds a converted LoRA exactly: its layers and largest rank."""
    rank = max(value.shape[0] for key, value in state.items() if key.endswith(A))
    layers = [key.partition(".")[2].removesuffix(A) for key in state if key.endswith(A)]
    return LoraConfig(rank=rank, alpha=rank, target_modules=layers)


def fit_lora(
    state: Mapping[str, Tensor], model: ModelConfig, shapes: Mapping[str, Sequence[int]], file: str, seed: int
) -> dict[str, Tensor]:
    """Return a `Policy.trained_state` that adds to every layer what a converted LoRA adds.

    The ranks that the LoRA lacks get the start of a new LoRA: gaussian A, and B of zeros.

    Args:
        state: the LoRA, of scale 1.
        model: the configuration of the model, with the settings of its LoRA.
        shapes: of the trained parameters, by the names of `Policy.parameters`.
        file: the LoRA's file, for messages.
        seed: draws A.

    Raises:
        CheckpointError: the LoRA has a larger rank, or a layer that `model.lora.target_modules` leaves out.
    """
    lora, draw = model.lora, torch.Generator().manual_seed(seed)
    network = next(iter(state)).partition(".")[0]
    check_fit(state, lora, file, [name.rpartition(".lora_")[0] for name in shapes])
    fitted = {}
    for name, shape in shapes.items():
        key = f"{network}.{name}"
        first = key.endswith(A)
        value = torch.randn(*shape, generator=draw) / lora.rank if first else torch.zeros(*shape)
        if key in state and first:
            value[: len(state[key])] = state[key]
        elif key in state:
            value[:, : state[key].shape[1]] = state[key].double() * lora.rank / lora.alpha
        fitted[key] = value
    return fitted


def check_fit(
    state: Mapping[str, Tensor], lora: LoraConfig, file: str, layers: Sequence[str] | None = None
) -> None:
    """Check that a run's LoRA has at least the rank and the layers of a converted one.

    Args:
        state: the converted LoRA.
        lora: the settings of the run's.
        file: the converted LoRA's file, for messages.
        layers: that the run trains; None, before its model is loaded: any that `target_modules` names.

    Raises:
        CheckpointError: it has a larger rank, or another layer.
    """
    for key, value in state.items():
        layer, rank = key.partition(".")[2].rpartition(".lora_")[0], value.shape[key.endswith(B)]
        ends = tuple(f".{target}" for target in lora.target_modules)
        reason = None
        if not (f".{layer}".endswith(ends) if layers is None else layer in layers):
            reason = "is of a layer that model.lora.target_modules leaves out"
        elif rank > lora.rank:
            reason = f"has rank {rank}, and model.lora.rank={lora.rank} is less"
        if reason is not None:
            raise CheckpointError(
                f"{file} does not fit: {key} {list(value.shape)} {reason}. Expected a run whose LoRA has at "
                "least the rank and the layers of the one that it starts from."
            )


@contextmanager
def _explaining(file: str) -> Iterator[None]:
    """Re-raise what diffusers and peft raise on a LoRA that they cannot read."""
    try:
        yield
    except CHANGED as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{file} cannot be read as a LoRA of this model: {reason.rstrip('.')}. Expected a LoRA that "
            "diffusers reads, of this model's transformer or unet."
        ) from error
