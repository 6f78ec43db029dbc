"""Compose overrides into a typed configuration, by Hydra, and dump a file that repeats the run."""

import re
from collections.abc import Sequence
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from marble_cli.config.aspects import check_lists
from marble_cli.config.keys import unknown_key, wrong_container
from marble_cli.config.messages import describe_error
from marble_cli.config.overrides import parse
from marble_cli.config.references import without_secrets
from marble_cli.config.schema import RunConfig
from marble_cli.config.typed import completed, typed
from marble_cli.config.yaml_text import write_yaml
from marble_cli.errors import ConfigError
from marble_cli.paths import expand
from marble_cli.plugins import balances, installed
from marble_cli.suggest import nearest

MODULE = "marble_cli.conf"
ROOT = "config"
# Mappings of `balance` whose keys are names that the user chooses.
BY_NAME = ("weights", "options", "groups", "priorities")
GROUPS = (
    *("preset", "model", "data", "rewards", "algorithm", "balance", "optimizer"),
    *("rollout", "evaluation", "trainer", "logging", "launcher"),
)
NAMES_PLUGIN = re.compile(r"((?:eval_)?rewards\.[^.]+)\.plugin")
# Name under which a resolved file is composed.
REPLAY = "replay"


def compose(overrides: Sequence[str] = (), config_name: str | None = None) -> RunConfig:
    """Compose a run's configuration.

    Args:
        overrides: in Hydra's grammar, e.g. `trainer.steps=10`, `balance=mgda`, `+rewards.mine={plugin: mine}`
            or `~rewards.ocr`.
        config_name: a config of the package, or the path of a resolved file, such as a run's config.yaml.
            None means the package's root config.

    Raises:
        ConfigError: a key, choice, type or combination is wrong; the message names this and the nearest right
            one.
    """
    parsed = parse(overrides)
    with initialize_config_module(MODULE, version_base=None):
        _register_plugins(parsed)
        if config_name is not None and (config_name.endswith((".yaml", ".yml")) or "/" in config_name):
            tree = _replay(expand("--config-name ", config_name), parsed)
        else:
            tree = _compose(_root(config_name), parsed)
    _require_named(tree, parsed)
    return typed(tree)


def choices(group: str) -> list[str]:
    """Return the choices of a configuration group, including those of installed plugins."""
    with initialize_config_module(MODULE, version_base=None):
        _register_plugins([])
        return options_of(group)


def load_resolved(path: Path) -> RunConfig:
    """Load the configuration that `dump` wrote to `path`.

    Raises:
        ConfigError: the file cannot be read or holds something else.
    """
    tree = read_tree(path)
    try:
        return typed(tree)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def dump(config: RunConfig) -> str:
    """Return YAML that `compose([], path)` turns into the same configuration, with references for secrets."""
    return write_yaml(without_secrets(config))


def _require_named(tree: DictConfig, overrides: list[Override]) -> None:
    """Require every plugin that an override names, unless another override says whether it is optional."""
    given = {override.key_or_group for override in overrides}
    for found in filter(None, map(NAMES_PLUGIN.fullmatch, given)):
        if (key := f"{found[1]}.optional") not in given:
            OmegaConf.update(tree, key, False, force_add=True)


def _root(config_name: str | None) -> str:
    if config_name is None:
        return ROOT
    known = [name for name in options_of("") if not name.startswith("_") and name != REPLAY]
    if config_name not in known:
        raise ConfigError(
            f"--config-name: there is no config {config_name!r}{nearest(config_name, known)}, or the path of "
            "a resolved file such as runs/demo/config.yaml"
        )
    return config_name


def options_of(group: str) -> list[str]:
    """Return the files of a group, inside Hydra's initialization."""
    from hydra.core.object_type import ObjectType

    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    return hydra.config_loader.get_group_options(group, ObjectType.CONFIG)


def _register_plugins(overrides: list[Override]) -> None:
    """Register installed plugins, and an overridden balance of torchjd, as choices of their groups."""
    store = ConfigStore.instance()
    written = set(options_of("rewards"))
    for name in installed().keys() - written:
        store.store(name, {name: {"plugin": name}}, group="rewards")
    names = [*balances()]
    for override in overrides:
        if override.key_or_group == "balance" and str(override.value()).startswith("torchjd:"):
            names.append(str(override.value()))
    for name in names:
        store.store(name, {"defaults": ["marble", "_self_"], "name": name}, group="balance")


def _check(overrides: list[Override]) -> None:
    """Refuse unknown choices and keys, as Hydra's own messages name neither near nor known names."""
    check_lists({o.key_or_group: o.value() for o in overrides if not o.is_delete()})
    for override in overrides:
        key = override.key_or_group
        if key in GROUPS:
            value = override.value()
            if isinstance(value, dict) or (override.is_delete() and value is None):
                continue
            known = options_of(key)
            if key != "rewards" and (isinstance(value, list) or override.is_add()):
                raise ConfigError(
                    f"override {override.input_line!r}: expected one choice, such as {key}={known[0]}."
                )
            for choice in value if isinstance(value, list) else [value]:
                if str(choice) not in known:
                    raise ConfigError(f"{key}={choice}: there is no such choice{nearest(str(choice), known)}")
        elif key == "eval_rewards" and isinstance(override.value(), str | list):
            raise ConfigError(
                f"override {override.input_line!r}: expected keys per reward. To watch rewards by "
                "their names: '+rewards@eval_rewards=[NAME,...]'"
            )
        elif reason := unknown_key(key) or wrong_container(key, override.value()):
            raise ConfigError(f"override {override.input_line!r}: {reason}")


def _compose(name: str, overrides: list[Override]) -> DictConfig:
    _check(overrides)
    removals = [o for o in overrides if o.is_delete() and o.key_or_group not in GROUPS]
    try:
        tree = hydra_compose(name, [_line(o) for o in overrides if o not in removals])
        for override in removals:
            check_present(tree, override)
        return hydra_compose(name, [_line(o) for o in overrides]) if removals else tree
    except HydraException as error:
        raise ConfigError(describe_error(error)) from error


def _line(override: Override) -> str:
    """Return the override as Hydra accepts it.

    Rewards, prompt sources, launchers and the mappings `BY_NAME` may hold keys that no file names: these need
    "++".
    """
    line = str(override.input_line)
    parts = override.key_or_group.split(".")
    of_reward = parts[0] in ("rewards", "eval_rewards") and len(parts) > 2
    of_balance = parts[0] == "balance" and len(parts) > 1 and parts[1] in BY_NAME
    of_source = parts[:2] == ["data", "sources"] and len(parts) > 3
    of_launcher = parts[0] == "launcher" and len(parts) > 1
    if override.type is OverrideType.CHANGE and (of_reward or of_balance or of_source or of_launcher):
        return f"++{line}"
    return line


def check_present(tree: DictConfig, override: Override) -> None:
    """Refuse to leave out a key that is not there."""
    path, _, last = override.key_or_group.rpartition(".")
    node = OmegaConf.select(tree, path) if path else tree
    if not isinstance(node, DictConfig) or last not in node:
        known = [str(key) for key in node] if isinstance(node, DictConfig) else []
        raise ConfigError(
            f"override {override.input_line!r}: there is no {last!r} to leave out{nearest(last, known)}"
        )


def read_tree(path: Path) -> DictConfig:
    """Read a run's `config.yaml`, without checking the values.

    Raises:
        ConfigError: the file is missing, cannot be read, or holds something else.
    """
    try:
        tree = OmegaConf.load(path)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist. Expected a run's config.yaml.") from None
    except Exception as error:  # YAML's errors have many types
        raise ConfigError(
            f"{path} cannot be read: {describe_error(error)}. Expected a run's config.yaml."
        ) from error
    if not isinstance(tree, DictConfig):
        raise ConfigError(f"{path} holds no mapping. Expected a run's config.yaml.")
    for key in ("defaults", "preset"):
        if key in tree:
            raise ConfigError(
                f"{path} holds {key}. Expected a run's config.yaml, which has the value of every key; "
                "marble train OVERRIDE ... --print-config prints one."
            )
    return tree


def _replay(path: Path, overrides: list[Override]) -> DictConfig:
    """Apply overrides to a resolved file.

    A choice replaces the file's whole group, without a preset's values; `+rewards` adds to it.
    """
    written = read_tree(path)
    if not overrides:
        return completed(written)
    typed(written.copy())
    tree = completed(written)
    chosen = [
        o
        for o in overrides
        if o.key_or_group in GROUPS
        and not (isinstance(o.value(), dict) or o.is_delete() or (o.is_add() and o.key_or_group == "rewards"))
    ]
    for override in chosen:
        if override.key_or_group == "preset":
            raise ConfigError(f"{override.input_line}: {path} is resolved, and a preset would undo it.")
    if chosen:
        fresh = _compose(ROOT, [*parse(["~preset"]), *chosen])
        for override in chosen:
            tree[override.key_or_group] = fresh.get(override.key_or_group, {})
    for override in overrides:
        if override.key_or_group.endswith(".aspects") and isinstance(override.value(), list):
            OmegaConf.update(tree, override.key_or_group, [], merge=False)  # a list replaces a mapping
    ConfigStore.instance().store(REPLAY, tree)
    return _compose(REPLAY, [override for override in overrides if override not in chosen])
