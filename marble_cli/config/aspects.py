"""Name the rewards of a configuration: one with `aspects` is a reward per aspect, `judge.style`."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from marble_cli.config.schema import AspectConfig, RewardConfig, RunConfig
from marble_cli.errors import ConfigError
from marble_cli.suggest import nearest

NAME = re.compile(r"[A-Za-z0-9_-]+")


def by_aspect(rewards: Mapping[str, RewardConfig]) -> dict[str, RewardConfig]:
    """Return the settings of every reward that has scores of its own, by the name of these scores.

    The aspect `style` of `judge` is the reward `judge.style`. Its settings are those of `judge`, except for
    the keys that are set under `aspects.style`. A reward without aspects keeps its name.
    """
    return {
        full_name(name, aspect): with_aspect(reward, aspect)
        for name, reward in rewards.items()
        for aspect in reward.aspects or ("",)
    }


def full_name(name: str, aspect: str) -> str:
    """Return the name of a reward's aspect; an empty aspect is the reward itself."""
    return f"{name}.{aspect}" if aspect else name


def reward_keys(config: RunConfig) -> dict[str, str]:
    """Return the dotted key of every reward of a run, by its name: `rewards.ocr`, `eval_rewards.judge`."""
    groups = {"rewards": config.rewards, "eval_rewards": config.eval_rewards}
    return {name: f"{group}.{name}" for group, rewards in groups.items() for name in rewards}


def key_of(group: str, name: str) -> str:
    """Return the dotted key of a reward of `group`: `rewards.judge.aspects.style` for `judge.style`."""
    return f"{group}.{name.replace('.', '.aspects.', 1)}"


def with_aspect(reward: RewardConfig, aspect: str) -> RewardConfig:
    """Return the settings of one aspect; an aspect that has no keys has the reward's own."""
    return replace(reward, aspects={}, **_set(vars(reward.aspects.get(aspect, AspectConfig()))))


def plain_by_aspect(rewards: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Do as `by_aspect` for rewards that are plain mappings, as in a configuration file."""
    return {
        full_name(name, aspect): {**row, **_set(keys or {})}
        for name, row in rewards.items()
        for aspect, keys in (row.get("aspects") or {"": {}}).items()
    }


def _set(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if value is not None}


def read_aspects(path: str, value: Any) -> dict[str, Any]:
    """Return the aspects of a reward as a mapping from names to their keys; a list names them without keys.

    Args:
        path: the dotted key of the reward, such as `rewards.judge`.
        value: of its key `aspects`.

    Raises:
        ConfigError: it is neither a list nor a mapping, a name is malformed or occurs twice, or a key of an
            aspect is unknown.
    """
    if isinstance(value, str) or not isinstance(value, Iterable | None):
        raise ConfigError(
            f"{path}.aspects={value}: expected a list, such as {path}.aspects=[alignment,style]."
        )
    names = [str(name) for name in value or ()]
    for name in names:
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"{path}.aspects: {name!r} is no name of an aspect. Expected letters, digits, - and _."
            )
        if names.count(name) > 1:
            raise ConfigError(f"{path}.aspects: {name} is there twice. Expected it once.")
    rows = value if isinstance(value, Mapping) else {}
    return {name: _read_keys(f"{path}.aspects.{name}", rows.get(name) or {}) for name in names}


def _read_keys(path: str, row: Any) -> dict[str, Any]:
    """Check the keys of one aspect; a mapping without them has those of the reward."""
    if not isinstance(row, Mapping):
        raise ConfigError(f"{path}={row}: expected keys, such as {path}={{weight: 2.0}}.")
    known = [key.name for key in fields(AspectConfig)]
    for key in row:
        if key not in known:
            raise ConfigError(f"{path}.{key}: an aspect has no such key of its own{nearest(str(key), known)}")
    return dict(row)


def check_lists(values: Mapping[str, Any]) -> None:
    """Refuse keys of an aspect beside a list that names the aspects without keys.

    Args:
        values: of overrides, by dotted key.

    Raises:
        ConfigError: there are both.
    """
    for named, names in values.items():
        if named.endswith(".aspects") and isinstance(names, list):
            for key in values:
                if key.startswith(f"{named}."):
                    raise ConfigError(
                        f"{key}: {named} is a list here. Expected a mapping, such as "
                        f"{named}={{NAME: {{weight: 2.0}}}}."
                    )


def flat_names(values: Any) -> Any:
    """Turn `{judge: {style: 2}}`, as dotted keys make it, into `{judge.style: 2}`, by names of rewards."""
    if not isinstance(values, Mapping):
        return values
    flat: dict[str, Any] = {}
    for name, value in values.items():
        below = value.items() if isinstance(value, Mapping) else [("", value)]
        flat |= {full_name(str(name), str(aspect)) if aspect else name: part for aspect, part in below}
    return flat
