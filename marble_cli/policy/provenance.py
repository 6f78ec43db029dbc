"""Record which model and settings trained weights belong to, and compare that before the weights are used.

Shapes alone do not tell two models of one architecture apart, nor one alpha from another.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from marble_cli.config.enums import Train
from marble_cli.config.schema import ModelConfig
from marble_cli.errors import CheckpointError
from marble_cli.policy.base import Family
from marble_cli.policy.diffusers_types import Network

SAMPLED = 64  # values of each tensor that enter a digest
KINDS = {"lora": "a LoRA", "full": "a whole network"}


@torch.no_grad()
def digest_tensors(digest: "hashlib._Hash", tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Update `digest` with the name and shape of every tensor, and with `SAMPLED` of its values."""
    for name, tensor in tensors:
        flat = tensor.flatten()
        sampled = flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED]
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(sampled.double().cpu().numpy().tobytes())


def weights_digest(network: nn.Module) -> str:
    """Return a SHA-256 that identifies a network's weights, wherever they were loaded from."""
    digest = hashlib.sha256()
    digest_tensors(digest, network.named_parameters())
    return digest.hexdigest()


def describe_provenance(
    model: ModelConfig, weights: str, family: type[Family], network: Network
) -> dict[str, Any]:
    """Return what trained weights belong to, ready for JSON.

    Args:
        model: the configuration of the model.
        weights: `weights_digest` of its network as loaded, in the model's precision.
        family: its family.
        network: if it is trained as a whole, its configuration is included, as diffusers writes it.
    """
    provenance = {
        "train": model.train.value,
        "model": model.path,
        "precision": model.precision.value,
        "weights": weights,
        "family": family.__name__,
        "network": family.network,
    }
    if model.train is Train.full:
        config = json.loads(network.to_json_string())
        config.pop("_name_or_path", None)  # a folder of this machine
        return provenance | {"transformer": config}
    return provenance | {
        "rank": model.lora.rank,
        "alpha": model.lora.alpha,
        "target_modules": sorted(model.lora.target_modules),
    }


def read_provenance(info: Mapping[str, Any], train: str) -> Mapping[str, Any]:
    """Return the provenance that a checkpoint's `info` states, with the kind of its weights, `train`.

    Old checkpoints state none; then only `train` is known.
    """
    stated = info.get("origin", {})
    return (stated if isinstance(stated, dict) else {}) | {"train": train}


def check_provenance(theirs: Mapping[str, Any], ours: Mapping[str, Any], checkpoint: str) -> None:
    """Check that a checkpoint's weights may be loaded into a policy.

    Args:
        theirs: the checkpoint's provenance; keys that it lacks are not compared.
        ours: the policy's provenance.
        checkpoint: the checkpoint's name, for the message.

    Raises:
        CheckpointError: what is trained, the model or a setting of the LoRA differs.
    """
    if theirs["train"] != ours["train"]:
        raise CheckpointError(
            f"{checkpoint} holds {KINDS[theirs['train']]}, and model.train={ours['train']} needs "
            f"{KINDS[ours['train']]}. Expected model.train={theirs['train']}, or a checkpoint of a run with "
            f"model.train={ours['train']}."
        )
    for key in ("rank", "alpha", "target_modules") if ours["train"] == "lora" else ():
        if theirs.get(key, ours[key]) != ours[key]:
            raise CheckpointError(
                f"{checkpoint} has other LoRA settings: model.lora.{key} was {theirs[key]} and is "
                f"{ours[key]} here. Expected a checkpoint of the same model with the same "
                "model.lora.* settings."
            )
    check_model(theirs, ours, checkpoint)


def check_model(theirs: Mapping[str, Any], ours: Mapping[str, Any], checkpoint: str) -> None:
    """Check that weights were trained on the policy's model; the arguments are those of `check_provenance`.

    Weights in two precisions are not compared: rounding makes them differ.

    Raises:
        CheckpointError: they were trained on another model.
    """
    same_precision = theirs.get("precision") == ours["precision"]
    if same_precision and theirs.get("weights", ours["weights"]) != ours["weights"]:
        raise CheckpointError(
            f"{checkpoint} belongs to another model: it was trained on {theirs.get('model')}, whose weights "
            f"differ from those of {ours['model']}. Expected a checkpoint of the same model."
        )
