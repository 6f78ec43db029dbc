"""Replace secrets in files by references to environment variables, so that a run can be repeated."""

import os
import re
from collections.abc import Iterator
from dataclasses import asdict
from enum import Enum
from typing import Any

from marble_cli.config.schema import RunConfig
from marble_cli.redaction import KEY, is_secret, learn, learn_options

# Prefix of the variables that hold secrets which came from no variable.
PREFIX = "MARBLE_SECRET_"


def as_tree(config: Any) -> dict[str, Any]:
    """Return the configuration of a run or benchmark as plain values, with the names of enums."""
    tree: dict[str, Any] = asdict(config, dict_factory=_named)
    return tree


def without_secrets(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as plain JSON values.

    A reference such as `${oc.env:JUDGE_KEY}` stands for each secret.
    """
    tree = as_tree(config)
    for node, key, path in list(secrets(tree)):
        reference = f"${{oc.env:{_variable(str(node[key]), path)}}}"
        node[key] = reference if isinstance(node[key], str) else f"${{oc.decode:{reference}}}"
    return tree


def keep_secrets(config: RunConfig) -> None:
    """Register the configuration's secrets for redaction, and put each into a variable if none holds it."""
    for reward in (*config.rewards.values(), *config.eval_rewards.values()):
        learn_options({"token_env": reward.token_env, **reward.options})
    for node, key, path in secrets(asdict(config)):
        value = str(node[key])
        os.environ[_variable(value, path)] = value
        learn(value)


def _named(rows: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a mapping of a dataclass's fields, with the names of enums as values."""
    return {key: value.name if isinstance(value, Enum) else value for key, value in rows}


def secrets(
    node: dict[Any, Any] | list[Any], path: tuple[str, ...] = (), *, below: bool = False
) -> Iterator[tuple[Any, Any, tuple[str, ...]]]:
    """Yield each secret as the node and key that hold it, and its path.

    In options, all `below` the name of a secret is one, except names of variables; elsewhere a key may be a
    reward called `token`.
    """
    for key in range(len(node)) if isinstance(node, list) else list(node):
        value, place = node[key], (*path, str(key))
        named = below or ("options" in path and KEY.fullmatch(str(key)) is not None)
        if isinstance(value, dict | list):
            yield from secrets(value, place, below=named)
        elif is_secret(str(key), value, below=named and not str(key).endswith("_env")):
            yield node, key, place


def _variable(value: str, path: tuple[str, ...]) -> str:
    """Return the variable that holds a secret: the user's own, or one named after the secret's path."""
    own = sorted(name for name, held in os.environ.items() if held == value and not name.startswith(PREFIX))
    return own[0] if own else PREFIX + re.sub(r"\W", "_", "_".join(path)).upper()
