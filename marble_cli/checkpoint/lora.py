"""Store a LoRA so that every loader applies it alike: alpha / rank is folded into B.

In memory, `lora_A` [rank, in] and `lora_B` [out, rank] are as trained, and `scale * B @ A` is added to a
layer's weight, with scale = alpha / rank (Hu et al., arXiv 2106.09685, section 4.1). In a file, B is
*folded*: multiplied by the scale. Loaders that ignore the header (ComfyUI, converters, older diffusers)
assume scale 1, which is then right.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from marble_cli.checkpoint.manifest import REMEDY
from marble_cli.checkpoint.tensor_files import not_finite
from marble_cli.errors import CheckpointError

HEADER = "lora_adapter_metadata"  # header entry from which diffusers rebuilds a LoRA
NETWORKS = ("transformer", "unet")  # every key begins with one, before the layer's name
A, B = ".lora_A.weight", ".lora_B.weight"


def prefix(state: Mapping[str, Any]) -> str:
    """Return what the keys of a LoRA begin with, such as `transformer.`; it is one for all of them."""
    first = next(iter(state), "").partition(".")[0]
    return f"{first if first in NETWORKS else NETWORKS[0]}."


def layer_key(key: str) -> str:
    """Return a key without the name of the network: LAYER.lora_A.weight."""
    network, _, rest = key.partition(".")
    return rest if network in NETWORKS else key


def folded(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return the LoRA of scale 1 that equals `state` with `scale`; B is rounded once."""
    return {k: (v.double() * scale).to(v.dtype) if k.endswith(B) else v for k, v in state.items()}


def unfolded(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return the LoRA that was folded into `state`, up to the rounding of `folded`."""
    return {k: (v.double() / scale).to(v.dtype) if k.endswith(B) else v for k, v in state.items()}


def of_one_rank(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a LoRA that adds the same to every layer, with zeros up to the largest rank of a layer."""
    rank = max(value.shape[key.endswith(B)] for key, value in state.items())
    return {
        key: pad(value, (0, rank - value.shape[1]) if key.endswith(B) else (0, 0, 0, rank - value.shape[0]))
        for key, value in state.items()
    }


def rounded(state: Mapping[str, Tensor], scale: float, name: str) -> dict[str, Tensor]:
    """Return every B of `state`, as `PARAMETER|name`, if folding loses a bit of one, else an empty dict.

    A scale that is a power of two loses none, except in values that leave their type's normal range.
    """
    ups = {key: value for key, value in state.items() if key.endswith(B)}
    back = unfolded(folded(ups, scale), scale)
    if _is_power_of_two(scale) and all(value.equal(back[key]) for key, value in ups.items()):
        return {}
    return {f"{layer_key(key)}|{name}": value for key, value in ups.items()}


def as_trained(
    state: Mapping[str, Tensor], scale: float, name: str, kept: dict[str, Tensor], step: int
) -> dict[str, Tensor]:
    """Return the LoRA that was folded into `state`, bit for bit, and remove its `PARAMETER|name` from `kept`.

    Raises:
        CheckpointError: `kept` lacks a B or has others, or unfolding makes a value infinite.
    """
    suffix = f"|{name}"
    start = prefix(state)
    own = {start + key.removesuffix(suffix): kept.pop(key) for key in list(kept) if key.endswith(suffix)}
    expected = {key: value.shape for key, value in state.items() if key.endswith(B)}
    if own or not _is_power_of_two(scale):
        found = {key: value.shape for key, value in own.items()}
        if wrong := sorted(key for key, _ in found.items() ^ expected.items()):
            raise CheckpointError(
                f"optimizer.safetensors of the checkpoint of step {step} does not fit the LoRA in {name}/: "
                f"{wrong[0]} differs. {REMEDY}"
            )
    result = unfolded(state, scale) | own
    if bad := not_finite(result):
        raise CheckpointError(
            f"the checkpoint of step {step} is damaged: its scale {scale} makes {bad} of {name}/ infinite. "
            f"{REMEDY}"
        )
    return result


def _is_power_of_two(scale: float) -> bool:
    return math.frexp(scale)[0] == 0.5


def check(state: Mapping[str, Tensor], file: Path) -> None:
    """Check that a file holds A [rank, in] and B [out, rank] for every layer, and nothing else.

    All layers must have one rank.

    Raises:
        CheckpointError: the file holds something else.
    """
    pairs = {f"{prefix(state)}{layer}{part}" for layer in layers(state) for part in (A, B)}
    ranks = {value.shape[key.endswith(B)] for key, value in state.items() if value.dim() == 2}
    if not pairs or pairs != state.keys() or len(ranks) != 1 or any(v.dim() != 2 for v in state.values()):
        raise CheckpointError(f"{file} is not a LoRA of one rank, with A and B for every layer. {REMEDY}")


def settings(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what peft needs to rebuild a folded LoRA: rank, alpha and layers, by the names of `LoraConfig`.

    Only these: diffusers passes all entries to `LoraConfig`, which refuses keys that its release does not
    know.
    """
    rank = next((value.shape[0] for key, value in state.items() if key.endswith(A)), 0)
    return {"r": rank, "lora_alpha": rank, "target_modules": layers(state)}


def layers(state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the network's layers that a LoRA adapts."""
    return sorted(layer_key(key).removesuffix(A) for key in state if key.endswith(A))


def header(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the header of a file of a folded LoRA, as diffusers' `save_lora_weights` writes it."""
    entries = {prefix(state) + key: value for key, value in settings(state).items()}
    return {HEADER: json.dumps(entries, sort_keys=True)}


def stated_scale(entries: Mapping[str, str]) -> float | None:
    """Return alpha / rank from a file's header; None if the header does not state both as numbers above 0."""
    try:
        stated = json.loads(entries.get(HEADER, ""))
        start = prefix(stated)
        scale = float(stated[f"{start}lora_alpha"]) / float(stated[f"{start}r"])
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
        return None
    return scale if 0 < scale < math.inf else None
