"""The tree of configuration keys, read off the schema: which keys there are and which one was meant."""

import dataclasses
import types
import typing

from marble_cli.config.schema import RewardConfig, RunConfig
from marble_cli.suggest import nearest


def fields(node: typing.Any) -> dict[str, typing.Any]:
    """The types of the keys below a dataclass."""
    hints = typing.get_type_hints(node)
    return {field.name: hints[field.name] for field in dataclasses.fields(node)}


def required_kind(kind: typing.Any) -> typing.Any:
    """The type without null: `str` of `str | None`."""
    if typing.get_origin(kind) not in (types.UnionType, typing.Union):
        return kind
    return next(part for part in typing.get_args(kind) if part is not type(None))


def kind_of(key: str) -> typing.Any:
    """The type of the dotted `key`; Any for what plugins and prompts define, None if there is no such key."""
    node: typing.Any = RunConfig
    for part in key.split("."):
        if typing.get_origin(node) is dict:
            node = typing.get_args(node)[1]
        elif dataclasses.is_dataclass(node):
            node = fields(node).get(part, typing.Any if node is RewardConfig else None)
        else:
            return typing.Any if node is typing.Any else None
    return node


def unknown_key(key: str) -> str | None:
    """Why the dotted `key` is none of the configuration's, with the nearest one that is; None if it is one."""
    node: typing.Any = RunConfig
    path: list[str] = []
    for part in key.split("."):
        arguments = typing.get_args(node)
        if typing.get_origin(node) is dict:
            node = arguments[1]
        elif node is RewardConfig:
            return None  # an option of the plugin, compared with its constructor when that is at hand
        elif dataclasses.is_dataclass(node):
            known = fields(node)
            if part not in known:
                candidates = [".".join([*path, name]) for name in (*known, *(() if path else ("preset",)))]
                return f"there is no key {key!r}{nearest('.'.join([*path, part]), candidates)}"
            node = known[part]
        elif node is not typing.Any:
            return f"there is no key {key!r}: {'.'.join(path)} holds a value, not further keys."
        path.append(part)
    return None
