"""Locate a reward: in this process, on a server, or in an isolated environment."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from marble_cli.config import schema
from marble_cli.errors import ConfigError
from marble_cli.redaction import learn_options
from marble_cli.rewards.api import Declaration
from marble_cli.rewards.aspects import check_aspects
from marble_cli.rewards.device import numbered
from marble_cli.rewards.elsewhere.meeting import Machine
from marble_cli.rewards.registry import Reward, build, check_options, load_plugin


def declare(name: str, settings: schema.RewardConfig, key: str | None = None) -> Declaration:
    """Return the reward's declaration, after every check that can be made without building it.

    Args:
        name: of the reward.
        settings: of the reward.
        key: its dotted key, `rewards.<name>` if None.

    Raises:
        ConfigError: there is no such plugin, environment or served reward, or an option is wrong.
        RewardError: the plugin cannot be imported, or the server cannot be reached.
    """
    key = key or f"rewards.{name}"
    _check_keys(key, settings.options)
    if settings.url is not None:
        from marble_cli.rewards.elsewhere.client import address, examine
        from marble_cli.rewards.elsewhere.protocol import declaration_from_json

        served = declaration_from_json(examine(key, settings.plugin, address(key, settings)))
        return check_aspects(key, [*settings.aspects], served)
    if settings.isolated:
        from marble_cli.rewards.elsewhere.isolated import declare_isolated

        return declare_isolated(name, settings, key)
    return check_options(key, load_plugin(settings.plugin), settings.options, [*settings.aspects])


def maker(
    name: str,
    settings: schema.RewardConfig,
    device: str,
    machine: Machine | None = None,
    key: str | None = None,
) -> Callable[[], Reward]:
    """Return a function that builds the reward at every call.

    Args:
        name: of the reward.
        settings: of the reward.
        device: where it should compute; a server ignores this.
        machine: where the ranks of this machine meet that share the server of an isolated reward.
        key: its dotted key, `rewards.<name>` if None.

    Raises:
        ConfigError, RewardError: as `declare`; the function may raise them too.
    """
    key = key or f"rewards.{name}"
    _check_keys(key, settings.options)
    device = numbered(device)  # once, in the thread whose current device is the run's GPU
    if settings.url is not None:
        from marble_cli.rewards.elsewhere.client import QUEUE, address, bind, examine
        from marble_cli.rewards.elsewhere.protocol import declaration_from_json

        at, served = address(key, settings), settings.plugin
        declaration = declaration_from_json(examine(key, served, at))
        check_aspects(key, [*settings.aspects], declaration)
        return lambda: replace(
            bind(key, name, served, at, declaration, settings.timeout), queue=QUEUE * settings.timeout
        )
    if settings.isolated and machine is not None:
        from marble_cli.rewards.elsewhere.shared import SharedServer

        return SharedServer(name, settings, machine, key).start
    if settings.isolated:
        from marble_cli.rewards.elsewhere.isolated import IsolatedServer

        return IsolatedServer(name, settings, device, key).start
    aspects = tuple(settings.aspects)
    return lambda: build(name, settings.plugin, settings.options, device, aspects=aspects, key=key)


def _check_keys(key: str, options: Mapping[str, Any]) -> None:
    """Register the secrets among a reward's options, and refuse keys that cannot be used.

    Raises:
        ConfigError: an option such as `api_key_env` names a variable that is not set, or that cannot be a
            key.
    """
    learn_options(options)
    for option, variable in options.items():
        if not isinstance(variable, str) or not option.endswith(("key_env", "token_env")):
            continue
        secret = os.environ.get(variable)
        if not secret:
            raise ConfigError(
                f"{key}.{option}: the environment variable {variable} is not set. Set it to the key."
            )
        if not secret.isascii() or not secret.isprintable() or " " in secret:
            raise ConfigError(
                f"{key}.{option}: the environment variable {variable} holds white space, a line "
                "end, control characters or letters that are not ASCII. Expected the key alone; its value is "
                "not shown. Set it anew."
            )
