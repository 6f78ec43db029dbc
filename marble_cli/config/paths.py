"""Which keys are paths. They are made absolute once, so that nothing depends on the working directory later."""

import os
from pathlib import Path
from typing import Any

from marble_cli.config.schema import RunConfig
from marble_cli.errors import ConfigError, RequestError
from marble_cli.paths import absolute, expand

WRITTEN_AS_PATH = ("~/", "./", "../")


def make_absolute(config: RunConfig) -> None:
    """Replace every path of `config` by an absolute one, `~` by the user's folder.

    Keys that take the id of something on the hub as well are paths if they begin with `.`, `/` or `~` or name a folder
    that is there. So are options of rewards, if they begin with `./`, `../` or `~/`, or hold a `/` and name one.

    Raises:
        ConfigError: a path cannot be one, or there is no such user.
    """
    try:
        config.run.dir = str(absolute("run.dir=", config.run.dir))
        spare = Path(config.run.dir) / "home"
        _settle(config, spare)
    except RequestError as error:
        raise ConfigError(str(error)) from error


def _settle(config: RunConfig, spare: Path) -> None:
    model, data = config.model, config.data
    model.path = _folder_or_id("model.path=", model.path, spare)
    model.clip = _folder_or_id("model.clip=", model.clip, spare)
    if model.embedding_cache is not None:
        model.embedding_cache = str(absolute("model.embedding_cache=", model.embedding_cache, spare))
    if data.root and data.root != "tiny":
        data.root = str(absolute("data.root=", data.root, spare))
    for name, source in data.sources.items():
        said = f"data.sources.{name}"
        if source.hub is not None:
            source.hub = _folder_or_id(f"{said}.hub=", source.hub, spare)
        else:  # below data.root
            source.train = str(expand(f"{said}.train=", source.train, spare))
            source.test = str(expand(f"{said}.test=", source.test, spare))
    for group, rewards in (("rewards", config.rewards), ("eval_rewards", config.eval_rewards)):
        for name, reward in rewards.items():
            reward.options = {
                key: _option(f"{group}.{name}.{key}=", value, spare) for key, value in reward.options.items()
            }


def _folder_or_id(said: str, text: str, spare: Path) -> str:
    if text.startswith((".", "/", "~")) or (text != "tiny" and os.path.exists(text)):
        return str(absolute(said, text, spare))
    return text


def _option(said: str, value: Any, spare: Path) -> Any:
    if isinstance(value, list):
        return [_option(said, part, spare) for part in value]
    if isinstance(value, dict):
        return {key: _option(said, part, spare) for key, part in value.items()}
    if not isinstance(value, str) or "\n" in value:
        return value
    if value.startswith(WRITTEN_AS_PATH) or ("/" in value and os.path.isdir(value)):
        return str(absolute(said, value, spare))
    return value
