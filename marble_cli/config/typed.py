"""Convert an untyped tree into the configuration's types, and check it."""

import logging
import pickle
from functools import lru_cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from marble_cli.config.aspects import flat_names, read_aspects
from marble_cli.config.keys import missing_keys, switches, unknown_key, wrong_shape
from marble_cli.config.messages import describe_value, unresolved
from marble_cli.config.paths import make_absolute
from marble_cli.config.references import keep_secrets
from marble_cli.config.resolution import canonical, with_sides
from marble_cli.config.schema import HOST, RewardConfig, RunConfig
from marble_cli.config.select import spell_out_select
from marble_cli.config.validate import validate
from marble_cli.errors import ConfigError
from marble_cli.plugins import installed
from marble_cli.suggest import nearest

log = logging.getLogger("marble")


def typed(tree: DictConfig) -> RunConfig:
    """Convert an untyped tree to the schema's types, then check ranges and combinations.

    The tree is used up: a caller that goes on with it passes a copy.

    Raises:
        ConfigError: a key is unknown or has no value, or its value is of the wrong type or out of range.
    """
    OmegaConf.set_struct(tree, False)
    try:
        OmegaConf.resolve(tree)
        for group in ("rewards", "eval_rewards"):
            rows = tree.get(group) or {}
            if rows and not OmegaConf.is_dict(rows):
                raise ConfigError(f"{group}={rows}: expected keys, such as {group}.NAME.plugin=...")
            tree[group] = {name: split_reward(f"{group}.{name}", row, rows) for name, row in rows.items()}
        _check_sources(tree)
        for key in ("priorities", "weights"):
            if OmegaConf.is_dict(named := OmegaConf.select(tree, f"balance.{key}")):
                tree.balance[key] = flat_names(OmegaConf.to_container(named))
        _name_switches(tree)
        spell_out_select(tree)
        if reason := wrong_shape(tree):
            raise ConfigError(reason)
        config = _convert(tree)
    except InterpolationResolutionError as error:
        raise ConfigError(unresolved(tree) or describe_value(error)) from error
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or ""
        reason = unknown_key(key.partition("[")[0]) if key else None  # not a list's element
        raise ConfigError(reason or describe_value(error)) from error
    _drop_optional(config)
    keep_secrets(config)
    validate(config)
    model = config.model
    model.resolution = with_sides(model.resolution, model.width, model.height)
    model.width = model.height = None  # they are in it now
    if config.evaluation.resolution is not None:
        config.evaluation.resolution = canonical(config.evaluation.resolution)
    if (buckets := config.data.aspect_ratio_buckets) is not None:
        config.data.aspect_ratio_buckets = [str(canonical(bucket)) for bucket in buckets]
    make_absolute(config)
    return config


def completed(tree: Any) -> DictConfig:
    """Add the defaults of missing keys to a run's resolved `tree`, as files of older runs lack some keys.

    Raises:
        ConfigError: a value stands where keys belong.
    """
    try:
        merged = OmegaConf.merge(_defaults(), tree)
    except OmegaConfBaseException as error:
        raise ConfigError(wrong_shape(tree) or describe_value(error)) from error
    assert isinstance(merged, DictConfig)
    return merged


@lru_cache(maxsize=1)
def _defaults() -> Any:
    return OmegaConf.to_container(schema((), ()), enum_to_str=True)


def _convert(tree: DictConfig) -> RunConfig:
    """Convert a tree without references, which is used up."""
    absent = {*missing_keys(tree)}
    merged = OmegaConf.unsafe_merge(schema(tuple(tree.rewards), tuple(tree.eval_rewards)), tree)
    if missing := absent | {*missing_keys(merged)}:
        others = f", nor have {len(missing) - 1} other keys" if len(missing) > 1 else ""
        raise ConfigError(f"{min(missing)} has no value{others}. Set it: {min(missing)}=...")
    config = OmegaConf.to_object(merged)
    assert isinstance(config, RunConfig)
    return config


def schema(rewards: tuple[str, ...], eval_rewards: tuple[str, ...]) -> DictConfig:
    """Return the schema with such rewards as a tree of the caller's own."""
    tree: DictConfig = pickle.loads(_pickled(rewards, eval_rewards))
    return tree


@lru_cache(maxsize=64)
def _pickled(rewards: tuple[str, ...], eval_rewards: tuple[str, ...]) -> bytes:
    """Make the schema once, which is slow, as bytes: reading these takes a fifth of a copy's time."""
    tree: DictConfig = schema((), ()) if rewards or eval_rewards else OmegaConf.structured(RunConfig)
    for group, names in (("rewards", rewards), ("eval_rewards", eval_rewards)):
        for name in names:
            tree[group][name] = RewardConfig
    return pickle.dumps(tree)


def _name_switches(tree: DictConfig) -> None:
    """Replace booleans of `Switch` keys by names, as OmegaConf takes no boolean for an enum."""
    for key in switches():
        if isinstance(value := OmegaConf.select(tree, key), bool):
            OmegaConf.update(tree, key, str(value).lower())


def split_reward(path: str, row: Any, rows: Any) -> dict[str, Any]:
    """Split a reward's keys into those of the schema and the options of its plugin."""
    if not OmegaConf.is_dict(row):
        raise ConfigError(f"{path}={row}: expected keys, e.g. '+{path}={{plugin: NAME, weight: 1.0}}'.")
    if "plugin" not in row:
        others = [str(name) for name, other in rows.items() if OmegaConf.is_dict(other) and "plugin" in other]
        raise ConfigError(
            f"{path}: this run has no such reward{nearest(path.split('.')[1], others)}. To add one: "
            f"'+{path}={{plugin: NAME}}'"
        )
    plain = {str(key): value for key, value in OmegaConf.to_container(row).items()}  # type: ignore[union-attr]
    if "aspects" in plain:
        plain["aspects"] = read_aspects(path, plain["aspects"])
    options = plain.pop("options", {})
    if not isinstance(options, dict):
        given = "null" if options is None else options
        raise ConfigError(f"{path}.options={given}: expected the plugin's options, such as {{depth: 3}}.")
    options = {**options, **{key: plain[key] for key in plain if key not in HOST}}
    return {key: value for key, value in plain.items() if key in HOST} | {"options": options}


def _check_sources(tree: DictConfig) -> None:
    """Refuse prompt sources without prompts: their names are misspelt in an override."""
    sources = OmegaConf.select(tree, "data.sources")
    for name, source in sources.items() if OmegaConf.is_dict(sources) else ():
        if OmegaConf.is_dict(source) and not {"train", "test"} <= set(source):
            others = [str(other) for other in sources if other != name]
            raise ConfigError(
                f"data.sources.{name}: there is no such source{nearest(str(name), others)}. To add one: "
                f"'+data.sources.{name}={{train: FILE, test: FILE}}'"
            )


def _drop_optional(config: RunConfig) -> None:
    """Remove optional rewards whose plugin is not installed, with a warning."""
    known = installed()
    for rewards in (config.rewards, config.eval_rewards):
        for name, reward in list(rewards.items()):
            elsewhere = reward.url is not None or reward.isolated
            if reward.optional and not elsewhere and reward.plugin not in known:
                log.warning("reward %s is not installed; the run leaves it out", name)
                del rewards[name]
