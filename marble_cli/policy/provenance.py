"""What trained weights belong to: the model that they started from and their settings, kept in a checkpoint and compared before use.

Shapes do not tell two models of one architecture apart, nor one alpha from another.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from marble_cli.config.schema import ModelConfig, Train
from marble_cli.errors import CheckpointError

SAMPLED = 64  # values of each weight that tell one model from another
KINDS = {"lora": "a LoRA", "full": "a whole transformer"}


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


def describe_origin(model: ModelConfig, weights: str, family: str, transformer: Any) -> dict[str, Any]:
    """What trained weights are tied to; plain, for JSON.

    Args:
        model: the configuration of the model.
        weights: `weights_digest` of its transformer as loaded, in the model's precision.
        family: the name of its `Family`.
        transformer: that transformer; beside the whole of its weights stands its configuration, as diffusers writes it.
    """
    origin = {
        "train": model.train.value,
        "model": model.path,
        "precision": model.precision.value,
        "weights": weights,
        "family": family,
    }
    if model.train is Train.full:
        config = json.loads(transformer.to_json_string())
        config.pop("_name_or_path", None)  # a folder of this machine
        return origin | {"transformer": config}
    return origin | {
        "rank": model.lora.rank,
        "alpha": model.lora.alpha,
        "target_modules": sorted(model.lora.target_modules),
    }


def read_origin(info: Mapping[str, Any], train: str) -> Mapping[str, Any]:
    """The origin in the info of a checkpoint of `train`ed weights; little of it in checkpoints from before it was kept."""
    origin = info.get("origin", {})
    return (origin if isinstance(origin, dict) else {}) | {"train": train}


def check_origin(theirs: Mapping[str, Any], ours: Mapping[str, Any], checkpoint: str) -> None:
    """Trained weights of one origin may stand in a policy of the other.

    Weights in two precisions are not compared: rounding makes them differ.

    Args:
        theirs: of the checkpoint; what is not said there is not compared.
        ours: of the policy.
        checkpoint: its name, for the message.

    Raises:
        CheckpointError: what is trained, the model or a setting of the LoRA differs.
    """
    if theirs["train"] != ours["train"]:
        raise CheckpointError(
            f"{checkpoint} holds {KINDS[theirs['train']]}, and model.train={ours['train']} needs {KINDS[ours['train']]}. "
            f"Expected model.train={theirs['train']}, or a checkpoint of a run with model.train={ours['train']}."
        )
    for key in ("rank", "alpha", "target_modules") if ours["train"] == "lora" else ():
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
