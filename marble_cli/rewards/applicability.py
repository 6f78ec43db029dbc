"""Check that a prompt's metadata has the types that a reward requires."""

from collections.abc import Mapping
from typing import Any

from marble_cli.rewards.api import Declaration, required_types
from marble_cli.rewards.kinds import Kind, MetadataError, fit


def fit_metadata(types: Mapping[str, Kind], metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return metadata whose values have the required types, with integral floats such as 47.0 as integers.

    Without such floats this is `metadata` itself.

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
    """Describe the first value of a prompt's metadata whose type a reward does not accept.

    A missing key is no problem: then the reward does not apply to the prompt.

    Args:
        reward: its `Declaration`, its class or function, or the value of its `requires`.
        metadata: of one prompt.

    Returns:
        The description, or None if all types are accepted.

    Raises:
        RewardError: `requires` is malformed.
    """
    if isinstance(reward, Declaration):
        types = reward.types
    else:
        _, types = required_types(getattr(reward, "requires", None) if callable(reward) else reward)
    try:
        fit_metadata(types, metadata)
    except MetadataError as error:
        return str(error)
    return None
