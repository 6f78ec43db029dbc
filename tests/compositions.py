"""Compose the package's files once per process and choice of files, for thousands of configurations."""

import copy
import pickle
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from marble_cli.config import benchmark, compose, overrides, typed
from marble_cli.config.schema import RunConfig

_hydra_compose, _list_options, _convert_all = compose.hydra_compose, compose.options_of, typed._convert
_groups: dict[tuple[str, str], bytes] = {}
_parse_once = cache(overrides._parse)


def remember_compositions() -> None:
    """Let configurations that choose the same files share what Hydra makes of these, and lists of choices.

    Reading and merging the files is two thirds of a composition. Hydra sets the values on a copy. Its grammar
    takes a millisecond for each override, which is therefore read once. OmegaConf reads YAML by the parser in
    C, which makes the same of it in a sixth of the time. A group (`trainer`, say) of the same values is given
    its types once.
    """
    yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # type: ignore[misc]
    overrides._parse = _parse
    compose.hydra_compose = benchmark.hydra_compose = _compose
    compose.options_of = _options_of
    typed._convert = _convert


def _compose(name: str, lines: Sequence[str]) -> DictConfig:
    choices = tuple(line for line in lines if _is_choice(line))
    if name == compose.REPLAY and not choices:  # a file of the test's own, which nothing is merged with
        tree = copy.deepcopy(ConfigStore.instance().load(f"{name}.yaml").node)
        OmegaConf.set_struct(tree, True)
    elif name == compose.REPLAY:
        return _hydra_compose(name, list(lines))
    else:
        tree = pickle.loads(_chosen(name, choices))
    values = [copy.deepcopy(_value(line)) for line in lines if line not in choices]
    try:
        ConfigLoaderImpl._apply_overrides_to_config(values, tree)
    except OmegaConfBaseException as error:
        raise ConfigCompositionException from error
    return tree


def _parse(word: str, root: Any) -> Override:
    return copy.deepcopy(_parse_once(word, root))


@cache
def _value(line: str) -> Override:
    """Parse what marble hands to Hydra."""
    return OverridesParser.create().parse_override(line)


def _is_choice(line: str) -> bool:
    key, _, value = line.lstrip("+~").partition("=")
    return key.split("@")[0] in (*compose.GROUPS, benchmark.GROUP) and not value.startswith("{")


@cache
def _chosen(name: str, choices: tuple[str, ...]) -> bytes:
    """Return a pickled tree: reading one takes half the time of a copy."""
    return pickle.dumps(_hydra_compose(name, list(choices)))


def _options_of(group: str) -> list[str]:
    registered = ConfigStore.instance().repo.get(group, {}) if group else ConfigStore.instance().repo
    return list(_options(group, frozenset(registered)))


@cache
def _options(group: str, registered: frozenset[str]) -> tuple[str, ...]:
    """List the choices once per group and the names of those that are no files."""
    return tuple(_list_options(group))


def _convert(tree: DictConfig) -> RunConfig:
    """Convert group by group, unless marble has to refuse what is wrong or incomplete."""
    groups = {}
    for name, content in OmegaConf.to_container(tree).items():  # type: ignore[union-attr]
        key = str(name), repr(content)
        if key not in _groups:
            try:
                group = typed.schema(tuple(tree.rewards), tuple(tree.eval_rewards))[name]
                group.merge_with(tree[name])
            except (OmegaConfBaseException, TypeError, ValueError):
                return _convert_all(tree)
            if any(typed.missing_keys(group)) or any(typed.missing_keys(tree[name])):
                return _convert_all(tree)
            _groups[key] = pickle.dumps(OmegaConf.to_object(group))
        groups[name] = pickle.loads(_groups[key])
    return RunConfig(**groups) if len(groups) == len(fields(RunConfig)) else _convert_all(tree)
