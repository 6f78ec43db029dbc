"""Look up configuration keys in the schema: their types, and the nearest key to an unknown one."""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf

from marble_cli.config.enums import Switch
from marble_cli.config.schema import RewardConfig, RunConfig
from marble_cli.suggest import nearest

# Names that keys have elsewhere, for the message about an unknown one.
OTHER_NAMES = {"optimizer.learning_rate": "optimizer.lr"}


def fields(node: typing.Any) -> Mapping[str, typing.Any]:
    """Return the types of a dataclass's fields by name."""
    return _fields(node)


@cache
def _fields(node: typing.Any) -> Mapping[str, typing.Any]:
    hints = typing.get_type_hints(node)
    return types.MappingProxyType({field.name: hints[field.name] for field in dataclasses.fields(node)})


def required_kind(kind: typing.Any) -> typing.Any:
    """Return a type without null: `str` for `str | None`."""
    if typing.get_origin(kind) not in (types.UnionType, typing.Union):
        return kind
    return next(part for part in typing.get_args(kind) if part is not type(None))


def kind_of(key: str, root: typing.Any = RunConfig) -> typing.Any:
    """Return the type of a dotted key: Any if plugins or prompts define it, None if there is no such key.

    Args:
        key: below `root`.
        root: a dataclass of the schema.
    """
    node = root
    for part in key.split("."):
        if typing.get_origin(node) is dict:
            node = typing.get_args(node)[1]
            if node is float:  # what follows is the name of a reward, which an aspect's has a dot in
                break
        elif dataclasses.is_dataclass(node):
            node = fields(node).get(part, typing.Any if node is RewardConfig else None)
        else:
            return typing.Any if node is typing.Any else None
    return node


@cache
def switches() -> list[str]:
    """List the dotted keys of type `Switch`, which are all in groups of the root."""
    return [
        f"{group}.{name}"
        for group, node in fields(RunConfig).items()
        if dataclasses.is_dataclass(node)
        for name, kind in fields(node).items()
        if kind is Switch
    ]


def missing_keys(tree: DictConfig | ListConfig) -> Iterator[str]:
    """Yield the dotted keys that have no value; `OmegaConf.missing_keys` takes five times as long."""
    waiting: list[tuple[str, typing.Any]] = [("", OmegaConf.to_container(tree, enum_to_str=True))]
    while waiting:
        path, node = waiting.pop()
        if node == MISSING:
            yield path
        elif isinstance(node, dict):
            waiting += [(f"{path}.{name}" if path else str(name), child) for name, child in node.items()]
        elif isinstance(node, list):
            waiting += [(f"{path}[{place}]", child) for place, child in enumerate(node)]


def wrong_shape(tree: DictConfig, root: typing.Any = RunConfig, path: str = "") -> str | None:
    """Say which value of a resolved tree stands where keys belong, or holds more than a list's elements may.

    OmegaConf names no key in the one case, and takes lists in lists in the other.

    Args:
        tree: of the keys of `root`.
        root: a dataclass of the schema.
        path: of the tree, empty or with a dot at its end.
    """
    for name, kind in fields(root).items():
        key, value, kind = f"{path}{name}", tree.get(name), required_kind(kind)
        if dataclasses.is_dataclass(kind) and name in tree:
            if not isinstance(value, DictConfig):
                given = "null" if value is None else value
                return f"{key}={given}: expected keys, such as {key}.{next(iter(fields(kind)))}=..."
            if reason := wrong_shape(value, kind, f"{key}."):
                return reason
        elif typing.get_origin(kind) is list and isinstance(value, ListConfig):
            for place, part in enumerate(value):
                if OmegaConf.is_config(part):
                    return f"{key}[{place}]={part}: expected one value, no list or mapping."
        elif typing.get_origin(kind) is dict and dataclasses.is_dataclass(row := typing.get_args(kind)[1]):
            if value is not None and not isinstance(value, DictConfig):
                return f"{key}={value}: expected keys, such as {key}.NAME.{next(iter(fields(row)))}=..."
            for own, part in (value or {}).items():
                if isinstance(part, DictConfig) and (reason := wrong_shape(part, row, f"{key}.{own!s}.")):
                    return reason
    return None


def wrong_container(key: str, value: typing.Any) -> str | None:
    """Say why a list cannot be the value of a key that holds keys, or a mapping that of a list's.

    Args:
        key: a dotted key of `RunConfig`; `aspects` takes both.
        value: of the key, as an override gives it.
    """
    kind = required_kind(kind_of(key))
    if isinstance(value, dict) and typing.get_origin(kind) is list:
        return "expected a list, such as [a,b]."
    holds_keys = dataclasses.is_dataclass(kind) or typing.get_origin(kind) is dict
    if isinstance(value, list) and holds_keys and not key.endswith(".aspects"):
        return "expected keys, such as {NAME: VALUE}."
    return None


def unknown_key(key: str, root: typing.Any = RunConfig) -> str | None:
    """Say why a dotted key does not exist, with the nearest one that does; return None if it exists.

    Args:
        key: below `root`.
        root: a dataclass of the schema.
    """
    node = root
    path: list[str] = []
    for part in key.split("."):
        arguments = typing.get_args(node)
        if typing.get_origin(node) is dict:
            node = arguments[1]
            if node is float:
                return None  # a number per reward: names are compared later
        elif node is RewardConfig:
            return None  # an option of the plugin: its constructor is compared later
        elif dataclasses.is_dataclass(node):
            known = fields(node)
            if part not in known:
                candidates = [".".join([*path, name]) for name in (*known, *(() if path else ("preset",)))]
                wrong = ".".join([*path, part])
                return f"there is no key {key!r}{nearest(OTHER_NAMES.get(wrong, wrong), candidates)}"
            node = known[part]
        elif node is not typing.Any:
            return f"there is no key {key!r}: {'.'.join(path)} holds a value, not further keys."
        path.append(part)
    return None
