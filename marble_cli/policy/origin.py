"""What a LoRA belongs to: the model under it and its own settings, kept in a checkpoint and compared before it is used.

Shapes do not tell two models of one architecture apart, nor one alpha from another.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from marble_cli.config.schema import Model
from marble_cli.errors import CheckpointError

SAMPLED = 64  # values of each weight that tell one model from another


def weights_digest(transformer: nn.Module) -> str:
    """SHA-256 of some values of every parameter, wherever they come from."""
    digest = hashlib.sha256()
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            flat = parameter.flatten()
            chosen = flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED]
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(chosen.double().cpu().numpy().tobytes())
    return digest.hexdigest()


def describe_origin(model: Model, weights: str) -> dict[str, Any]:
    """The settings that a LoRA is tied to; plain, for JSON.

    Args:
        model: the configuration of the model.
        weights: `weights_digest` of its transformer in the model's precision.
    """
    return {
        "model": model.path,
        "precision": model.precision.value,
        "weights": weights,
        "rank": model.lora.rank,
        "alpha": model.lora.alpha,
        "target_modules": sorted(model.lora.target_modules),
    }


def read_origin(info: Mapping[str, Any]) -> Mapping[str, Any]:
    """The origin in a checkpoint's info; empty in checkpoints from before it was kept."""
    origin = info.get("origin", {})
    return origin if isinstance(origin, dict) else {}


def check_origin(theirs: Mapping[str, Any], ours: Mapping[str, Any], checkpoint: str) -> None:
    """A LoRA of one origin may stand in a policy of the other.

    Weights in two precisions are not compared: rounding makes them differ.

    Args:
        theirs: of the checkpoint; what is not said there is not compared.
        ours: of the policy.
        checkpoint: its name, for the message.

    Raises:
        CheckpointError: the model or a setting of the LoRA differs.
    """
    for key in ("rank", "alpha", "target_modules"):
        if theirs.get(key, ours[key]) != ours[key]:
            raise CheckpointError(
                f"{checkpoint} has other LoRA settings: model.lora.{key} was {theirs[key]} and is {ours[key]} here. "
                "Expected a checkpoint of the same model with the same model.lora.* settings."
            )
    same_precision = theirs.get("precision") == ours["precision"]
    if same_precision and theirs.get("weights", ours["weights"]) != ours["weights"]:
        raise CheckpointError(
            f"{checkpoint} belongs to another model: it was trained on {theirs.get('model')}, whose weights differ from "
            f"those of {ours['model']}. Expected a checkpoint of the same model."
        )
