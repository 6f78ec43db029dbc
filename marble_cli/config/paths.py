"""Make the paths of a configuration absolute once, so that the working directory no longer matters."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marble_cli.config.embedded import WORLDS
from marble_cli.config.schema import RewardConfig, RunConfig
from marble_cli.errors import ConfigError, RequestError
from marble_cli.paths import absolute, expand

WRITTEN_AS_PATH = ("~/", "./", "../")


def make_absolute(config: RunConfig) -> None:
    """Replace every path of `config` by an absolute one, and `~` by the user's home.

    A key that also takes a hub id is a path if its value begins with `.`, `/` or `~`, or names an existing
    folder. An option of a reward is a path if its value begins with `./`, `../` or `~/`, or holds a `/` and
    names a folder.

    Raises:
        ConfigError: the file system cannot hold a path, or a `~user` does not exist.
    """
    try:
        config.run.dir = str(absolute("run.dir=", config.run.dir))
        fallback_home = Path(config.run.dir) / "home"
        _settle(config, fallback_home)
    except RequestError as error:
        raise ConfigError(str(error)) from error


def _settle(config: RunConfig, fallback_home: Path) -> None:
    model, data = config.model, config.data
    model.path = _folder_or_id("model.path=", model.path, fallback_home)
    model.clip = _folder_or_id("model.clip=", model.clip, fallback_home)
    if model.lora.init is not None:
        model.lora.init = _folder_or_id("model.lora.init=", model.lora.init, fallback_home)
    if model.embedding_cache is not None:
        model.embedding_cache = str(absolute("model.embedding_cache=", model.embedding_cache, fallback_home))
    if data.root and data.root not in WORLDS:
        data.root = str(absolute("data.root=", data.root, fallback_home))
    for name, source in data.sources.items():
        key = f"data.sources.{name}"
        if source.hub is not None:
            source.hub = _folder_or_id(f"{key}.hub=", source.hub, fallback_home)
        else:  # below data.root
            source.train = str(expand(f"{key}.train=", source.train, fallback_home))
            source.test = str(expand(f"{key}.test=", source.test, fallback_home))
    for group, rewards in (("rewards", config.rewards), ("eval_rewards", config.eval_rewards)):
        settle_rewards(group, rewards, fallback_home)


def settle_rewards(group: str, rewards: Mapping[str, RewardConfig], fallback_home: Path | None) -> None:
    """Replace the paths among the options of `rewards`, which are under the key `group`."""
    for name, reward in rewards.items():
        reward.options = {
            key: _option(f"{group}.{name}.{key}=", value, fallback_home)
            for key, value in reward.options.items()
        }


def _folder_or_id(key: str, text: str, fallback_home: Path) -> str:
    if text.startswith((".", "/", "~")) or (text not in WORLDS and os.path.exists(text)):
        return str(absolute(key, text, fallback_home))
    return text


def _option(key: str, value: Any, fallback_home: Path | None) -> Any:
    if isinstance(value, list):
        return [_option(key, part, fallback_home) for part in value]
    if isinstance(value, dict):
        return {name: _option(key, part, fallback_home) for name, part in value.items()}
    if not isinstance(value, str) or "\n" in value:
        return value
    if value.startswith(WRITTEN_AS_PATH) or ("/" in value and os.path.isdir(value)):
        return str(absolute(key, value, fallback_home))
    return value
