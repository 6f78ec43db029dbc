"""Whether a prompt's metadata is what a reward requires."""

from collections.abc import Mapping
from typing import Any

from marble_cli.rewards.api import Declaration, required_types
from marble_cli.rewards.kinds import Kind, MetadataError, fit


def fitted(types: Mapping[str, Kind], metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `metadata` itself if its values are of `types`, or a copy with whole numbers for integral floats.

    Raises:
        MetadataError: a value is of another type.
    """
    changed = {}
    for key, kind in types.items():
        if key in metadata:
            value = fit(kind, metadata[key], f"metadata {key}")
            if value is not metadata[key]:
                changed[key] = value
    return {**metadata, **changed} if changed else metadata


def metadata_problem(reward: Any, metadata: Mapping[str, Any]) -> str | None:
    """Say which value of a prompt's metadata is not of the type that a reward requires; None if all are.

    A key that is missing is no problem: then the reward does not apply to the prompt.

    Args:
        reward: its `Declaration`, its class or function, or what stands under its `requires`.
        metadata: of one prompt.

    Raises:
        RewardError: `requires` is malformed.
    """
    if isinstance(reward, Declaration):
        types = reward.types
    else:
        _, types = required_types(getattr(reward, "requires", None) if callable(reward) else reward)
    try:
        fitted(types, metadata)
    except MetadataError as error:
        return str(error)
    return None
