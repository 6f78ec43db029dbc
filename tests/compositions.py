"""Compose the package's files once per process and choice of files, for thousands of configurations."""

import copy
from collections.abc import Sequence
from functools import cache

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from marble_cli.config import compose

_hydra_compose = compose.hydra_compose


def remember_compositions() -> None:
    """Let configurations that choose the same files share what Hydra makes of these.

    Reading and merging the files is two thirds of a composition. Hydra sets the values on a copy.
    """
    compose.hydra_compose = _compose


def _compose(name: str, lines: Sequence[str]) -> DictConfig:
    if name == compose.REPLAY:  # a file of the test's own
        return _hydra_compose(name, list(lines))
    choices = tuple(line for line in lines if _is_choice(line))
    tree = copy.deepcopy(_chosen(name, choices))
    values = OverridesParser.create().parse_overrides([line for line in lines if line not in choices])
    try:
        ConfigLoaderImpl._apply_overrides_to_config(values, tree)
    except OmegaConfBaseException as error:
        raise ConfigCompositionException from error
    return tree


def _is_choice(line: str) -> bool:
    key, _, value = line.lstrip("+~").partition("=")
    return key in compose.GROUPS and not value.startswith("{")


@cache
def _chosen(name: str, choices: tuple[str, ...]) -> DictConfig:
    return _hydra_compose(name, list(choices))
