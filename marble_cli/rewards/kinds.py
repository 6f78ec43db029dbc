"""Read the types of metadata that plugins write under `requires`, and check values against them.

    str, bool, list, dict, object     a value of that type; object is any value
    int                               a whole number; 47.0, as a table writes 47, reaches the reward as 47
    float                             a number
    [kind]                            a list of such values
    {"key": kind, ...}                a mapping with at least these keys
    kind | None, (kind, kind, ...)    any of several; with None the key may be missing or null

Inside marble a kind is JSON, because a reward's server sends it to the run: the name of a type, {"list":
kind}, {"dict": {key: kind}}, or a list of alternatives.
"""

import reprlib
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from marble_cli.errors import RewardError

Kind = str | list[Any] | dict[str, Any]

WORDS = {
    "str": "a string",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "list": "a list",
    "dict": "a mapping",
    "object": "anything",
    "None": "null",
}
NAMES: dict[Any, str] = {kind: kind.__name__ for kind in (str, bool, int, float, list, dict, object)}
NAMES |= {Any: "object", None: "None", NoneType: "None"}
SHOWN = reprlib.Repr()
SHOWN.maxstring = SHOWN.maxother = 60


class MetadataError(ValueError):
    """A value of a prompt's metadata has another type than a reward requires."""


def normal(kind: Any) -> Kind:
    """Convert a kind from the form that plugins write to JSON.

    Raises:
        RewardError: it is no kind.
    """
    origin = get_origin(kind)
    if isinstance(kind, tuple) or origin in (Union, UnionType):
        return [normal(part) for part in (kind if isinstance(kind, tuple) else get_args(kind))]
    if (isinstance(kind, list) and len(kind) == 1) or origin is list:
        return {"list": normal((kind if isinstance(kind, list) else get_args(kind))[0])}
    if isinstance(kind, Mapping):
        return {"dict": {str(key): normal(part) for key, part in kind.items()}}
    try:
        return NAMES[kind]
    except (KeyError, TypeError):
        raise RewardError(
            f"`requires` names the type {kind!r}. Expected str, int, float, bool, list, dict, object, "
            '[type], {"key": type}, or several with |.'
        ) from None


def optional(kind: Kind) -> bool:
    """Tell whether a key of this kind may be missing."""
    return kind == "None" or (isinstance(kind, list) and any(map(optional, kind)))


def fit(kind: Kind, value: Any, where: str) -> Any:
    """Return `value` with integers in the place of integral floats such as 47.0 where `kind` has int.

    Without such floats this is `value` itself.

    Args:
        kind: as `normal` returns it.
        value: from a prompt's metadata.
        where: the name of the value in messages.

    Raises:
        MetadataError: the value is of another kind.
    """
    if isinstance(kind, list):
        return _one_of(kind, value, where)
    if isinstance(kind, dict):
        return _items(kind["list"], value, where) if "list" in kind else _keys(kind["dict"], value, where)
    if kind == "int" and type(value) is float and value.is_integer():
        return int(value)
    if not _is(kind, value):
        raise MetadataError(f"{where}={SHOWN.repr(value)}: expected {describe_kind(kind)}")
    return value


def _is(kind: str, value: Any) -> bool:
    if kind in ("int", "float"):
        numbers = int if kind == "int" else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool)
    known = {"str": str, "bool": bool, "list": (list, tuple), "dict": Mapping, "None": NoneType}
    return isinstance(value, known.get(kind, object))  # type: ignore[arg-type]


def _one_of(kinds: list[Kind], value: Any, where: str) -> Any:
    matches, errors = [], []
    for kind in kinds:
        try:
            matches.append(fit(kind, value, where))
        except MetadataError as error:
            errors.append(error)
    if not matches:
        deeper = [error for error in errors if not str(error).startswith(f"{where}=")]
        expected = f"{where}={SHOWN.repr(value)}: expected {describe_kind(kinds)}"
        raise deeper[0] if deeper else MetadataError(expected)
    return next((match for match in matches if match is value), matches[0])


def _items(kind: Kind, value: Any, where: str) -> Any:
    if not _is("list", value):
        raise MetadataError(f"{where}={SHOWN.repr(value)}: expected {describe_kind({'list': kind})}")
    fitted = [fit(kind, part, f"{where}[{place}]") for place, part in enumerate(value)]
    return value if all(a is b for a, b in zip(fitted, value, strict=True)) else fitted


def _keys(kinds: Mapping[str, Kind], value: Any, where: str) -> Any:
    if not _is("dict", value):
        raise MetadataError(f"{where}={SHOWN.repr(value)}: expected {describe_kind({'dict': dict(kinds)})}")
    for key, kind in kinds.items():
        if key not in value and not optional(kind):
            raise MetadataError(f"{where}={SHOWN.repr(value)}: its key {key!r} is missing")
    fitted = {key: fit(kinds[key], value[key], f"{where}.{key}") for key in kinds if key in value}
    return value if all(fitted[key] is value[key] for key in fitted) else {**value, **fitted}


def describe_kind(kind: Kind) -> str:
    """Describe a value of `kind` in words, for messages."""
    if isinstance(kind, list):
        return " or ".join(map(describe_kind, kind))
    if isinstance(kind, dict):
        return (
            f"a list, each {describe_kind(kind['list'])}"
            if "list" in kind
            else f"a mapping with {', '.join(kind['dict'])}"
        )
    return WORDS.get(kind, kind)
