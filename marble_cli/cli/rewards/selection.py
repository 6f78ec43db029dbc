"""The rewards that a command names, with their settings, and metadata given as JSON."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marble_cli.errors import RequestError

if TYPE_CHECKING:
    from marble_cli.config.schema import RewardConfig, RunConfig

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A reward in the configuration, or an installed plugin.")
]


def select_rewards(names: list[str], overrides: list[str]) -> "tuple[dict[str, RewardConfig], RunConfig]":
    """Compose a configuration in which every reward of `names` has settings.

    Settings come from the overrides, else from the reward's file in conf/rewards. An installed plugin without
    either has the default settings.

    Returns:
        The settings by name, and the whole configuration.

    Raises:
        RequestError: there is no such reward.
        ConfigError: the configuration is invalid.
    """
    from marble_cli.config.compose import choices, compose
    from marble_cli.config.schema import RewardConfig
    from marble_cli.plugins import installed
    from marble_cli.suggest import nearest

    plugins = installed()
    chooses_rewards = any(word.lstrip("+").startswith(("rewards=", "eval_rewards")) for word in overrides)
    overridden_keys = {word.lstrip("+").partition("=")[0] for word in overrides}
    files = choices("rewards")
    from_files = [n for n in dict.fromkeys(names) if n in files and f"rewards.{n}" not in overridden_keys]
    if from_files and not chooses_rewards:  # load the files' defaults first, so that overrides apply to them
        required = [f"rewards.{name}.optional=false" for name in from_files]
        overrides = [f"rewards=[{','.join(from_files)}]", *required, *overrides]
    config = compose(overrides)
    known = {name: RewardConfig(plugin=name) for name in plugins} | config.rewards | config.eval_rewards
    for name in names:
        if name not in known:
            raise RequestError(f"there is no reward {name!r}{nearest(name, known)}")
    return {name: known[name] for name in names}, config


def select_reward(name: str, overrides: list[str] | None) -> "RewardConfig":
    """Return the settings of one reward; see `select_rewards`."""
    return select_rewards([name], overrides or [])[0][name]


def parse_metadata(text: str) -> dict[str, Any]:
    """Parse the value of --metadata.

    Raises:
        RequestError: it is not a JSON object.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise RequestError(
            f'--metadata {text!r} is not JSON: {error}. Expected an object such as \'{{"text": "47"}}\'.'
        ) from error
    if not isinstance(value, dict):
        raise RequestError(f'--metadata {text!r}: expected an object such as {{"text": "47"}}.')
    return value
