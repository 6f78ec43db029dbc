"""A LoRA in files that act alike everywhere: alpha / rank is part of B, and the header states alpha = rank.

In memory, `lora_A` [rank, in] and `lora_B` [out, rank] are as trained, and `scale * B @ A` is added to a layer's weight, with
scale = alpha / rank (Hu et al., LoRA, arXiv 2106.09685, section 4.1). Loaders that do not read the header (ComfyUI,
converters, older diffusers) take the scale to be 1; with a folded B they are right.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from marble_cli.checkpoint.manifest import REMEDY
from marble_cli.checkpoint.tensor_files import not_finite
from marble_cli.errors import CheckpointError

HEADER = "lora_adapter_metadata"  # the entry of a file's header from which diffusers rebuilds a LoRA
PREFIX = "transformer."  # of every key, before the name of a layer
A, B = ".lora_A.weight", ".lora_B.weight"


def folded(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return the LoRA of scale 1 that acts as `state` does with `scale`; B is multiplied in float64 and rounded once."""
    return {k: (v.double() * scale).to(v.dtype) if k.endswith(B) else v for k, v in state.items()}


def unfolded(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return the LoRA as trained, up to the rounding of `folded`."""
    return {k: (v.double() / scale).to(v.dtype) if k.endswith(B) else v for k, v in state.items()}


def rounded(state: Mapping[str, Tensor], scale: float, name: str) -> dict[str, Tensor]:
    """Return, as `KEY|name`, the tensors of `state` that `unfolded(folded(...))` does not give back to the bit.

    There are none if the scale is a power of two, except for values that leave the normal range of their type.
    """
    back = unfolded(folded(state, scale), scale)
    return {f"{key}|{name}": value for key, value in state.items() if not value.equal(back[key])}


def as_trained(
    state: Mapping[str, Tensor], scale: float, name: str, kept: dict[str, Tensor], file: Path
) -> dict[str, Tensor]:
    """Return the LoRA that was folded into `state`, to the bit; take its tensors `KEY|name` out of `kept`.

    Raises:
        CheckpointError: they are not of this LoRA, or the scale takes it out of range; `file` is where they stood.
    """
    own = {key.removesuffix(f"|{name}"): kept.pop(key) for key in list(kept) if key.endswith(f"|{name}")}
    if wrong := [key for key, value in own.items() if key not in state or state[key].shape != value.shape]:
        raise CheckpointError(f"{file} does not fit the LoRA in {name}/: {wrong[0]} differs. {REMEDY}")
    result = unfolded(state, scale) | own
    if bad := not_finite(result):
        raise CheckpointError(f"the scale {scale} of {file.parent} makes {bad} of {name}/ infinite. {REMEDY}")
    return result


def settings(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what every peft needs to rebuild a folded LoRA: its rank, alpha and layers, by the names of `LoraConfig`.

    Nothing else: diffusers hands all entries to peft's `LoraConfig`, which refuses those that its release does not know.
    """
    rank = next(value.shape[0] for key, value in state.items() if key.endswith(A))
    return {"r": rank, "lora_alpha": rank, "target_modules": layers(state)}


def layers(state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the transformer's layers that a LoRA adapts."""
    return sorted(key.removeprefix(PREFIX).removesuffix(A) for key in state if key.endswith(A))


def header(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return what a file of a folded LoRA states in its header, as diffusers' `save_lora_weights` does."""
    entries = {PREFIX + key: value for key, value in settings(state).items()}
    return {HEADER: json.dumps(entries, sort_keys=True)}


def stated_scale(entries: Mapping[str, str]) -> float | None:
    """Return alpha / rank by a file's header; None if the header does not state both as numbers above 0."""
    try:
        stated = json.loads(entries.get(HEADER, ""))
        scale = float(stated[f"{PREFIX}lora_alpha"]) / float(stated[f"{PREFIX}r"])
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError):
        return None
    return scale if 0 < scale < math.inf else None
