"""Secrets in a configuration: files hold references to environment variables, and a run can be repeated."""

import os
import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from marble_cli.config.schema import RunConfig
from marble_cli.redaction import is_secret, learn, learn_options

PREFIX = "MARBLE_SECRET_"  # of variables for secrets that came from none


def without_secrets(config: RunConfig) -> DictConfig:
    """Return the configuration as a tree with a reference such as `${oc.env:JUDGE_KEY}` for each secret."""
    tree: DictConfig = OmegaConf.structured(config)
    for node, key, value, path in list(_secrets(tree)):
        node[key] = f"${{oc.env:{_variable(value, path)}}}"
    return tree


def keep_secrets(config: RunConfig) -> None:
    """Learn the configuration's secrets, and put each that stands in no variable into one."""
    for reward in (*config.rewards.values(), *config.eval_rewards.values()):
        learn_options({"token_env": reward.token_env, **reward.options})
    for _, _, value, path in _secrets(asdict(config)):
        os.environ[_variable(value, path)] = value
        learn(value)


def _secrets(
    node: DictConfig | ListConfig | dict[Any, Any] | list[Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[Any, Any, str, tuple[str, ...]]]:
    """The nodes and keys that hold secrets, with their values and paths."""
    for key in range(len(node)) if isinstance(node, ListConfig | list) else list(node):
        value, place = node[key], (*path, str(key))
        if isinstance(value, DictConfig | ListConfig | dict | list):
            yield from _secrets(value, place)
        elif is_secret(str(key), value):
            yield node, key, value, place


def _variable(value: str, path: tuple[str, ...]) -> str:
    """The variable that holds a secret: the user's own, or one that is named after its place."""
    own = sorted(name for name, held in os.environ.items() if held == value and not name.startswith(PREFIX))
    return own[0] if own else PREFIX + re.sub(r"\W", "_", "_".join(path)).upper()
