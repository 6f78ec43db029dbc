"""A LoRA in files that act alike everywhere: alpha / rank is part of B, and the header states alpha = rank.

In memory, `lora_A` [rank, in] and `lora_B` [out, rank] are as trained, and `scale * B @ A` is added to a
layer's weight, with scale = alpha / rank (Hu et al., arXiv 2106.09685, section 4.1). Loaders that do not read
the header (ComfyUI, converters, older diffusers) take the scale to be 1; with a folded B they are right.
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
    """Return the LoRA of scale 1 that acts as `state` does with `scale`; B is rounded once."""
    return {k: (v.double() * scale).to(v.dtype) if k.endswith(B) else v for k, v in state.items()}


def unfolded(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return the LoRA as trained, up to the rounding of `folded`."""
    return {k: (v.double() / scale).to(v.dtype) if k.endswith(B) else v for k, v in state.items()}


def rounded(state: Mapping[str, Tensor], scale: float, name: str) -> dict[str, Tensor]:
    """Return every B of `state`, as `PARAMETER|name`, if folding may change a bit of one; else nothing.

    A power of two changes none, except in values that leave their type's normal range.
    """
    ups = {key: value for key, value in state.items() if key.endswith(B)}
    back = unfolded(folded(ups, scale), scale)
    if _is_power_of_two(scale) and all(value.equal(back[key]) for key, value in ups.items()):
        return {}
    return {f"{key.removeprefix(PREFIX)}|{name}": value for key, value in ups.items()}


def as_trained(
    state: Mapping[str, Tensor], scale: float, name: str, kept: dict[str, Tensor], step: int
) -> dict[str, Tensor]:
    """Return the LoRA that was folded into `state`, to the bit; take its `PARAMETER|name` out of `kept`.

    Raises:
        CheckpointError: `kept` lacks some or has others, or the scale takes the LoRA out of range.
    """
    end = f"|{name}"
    own = {PREFIX + key.removesuffix(end): kept.pop(key) for key in list(kept) if key.endswith(end)}
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
            f"the checkpoint of step {step} is damaged: its scale {scale} makes {bad} of {name}/ infinite. {REMEDY}"
        )
    return result


def _is_power_of_two(scale: float) -> bool:
    return math.frexp(scale)[0] == 0.5


def check(state: Mapping[str, Tensor], file: Path) -> None:
    """Check that a file's tensors are the A [rank, in] and B [out, rank] of layers, all of one rank.

    Raises:
        CheckpointError: they are not.
    """
    pairs = {f"{PREFIX}{layer}{part}" for layer in layers(state) for part in (A, B)}
    ranks = {value.shape[key.endswith(B)] for key, value in state.items() if value.dim() == 2}
    if not pairs or pairs != state.keys() or len(ranks) != 1 or any(v.dim() != 2 for v in state.values()):
        raise CheckpointError(f"{file} is no LoRA of one rank, with A and B for every layer. {REMEDY}")


def settings(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what peft needs to rebuild a folded LoRA: rank, alpha and layers, by the names of `LoraConfig`.

    Nothing else: diffusers hands all entries to `LoraConfig`, which refuses what its release does not know.
    """
    rank = next((value.shape[0] for key, value in state.items() if key.endswith(A)), 0)
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
