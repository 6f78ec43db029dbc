"""Read a prompt's requirements from metadata in GenEval's format."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from marble_reward_geneval.classes import COLORS, RELATIONS, TAGS

MAX_LISTED = 16  # names in a message; longer lists are only counted


@dataclass(frozen=True)
class Wanted:
    """A requirement: `count` objects of a class, perhaps with a colour and a relation to an earlier entry."""

    name: str
    count: int
    color: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True)
class Unwanted:
    """A prohibition: `count` or more objects of a class."""

    name: str
    count: int


@dataclass(frozen=True)
class Request:
    """The requirements of one prompt; prompts tagged `counting` have a detection threshold of their own."""

    include: tuple[Wanted, ...]
    exclude: tuple[Unwanted, ...] = ()
    counting: bool = False


def read_request(prompt: str, metadata: Mapping[str, Any], classes: Collection[str]) -> Request:
    """Read the requirements of one prompt.

    Args:
        prompt: for messages.
        metadata: with `include` and perhaps `exclude` and `tag`; None means that a key is absent.
        classes: names that the detector knows.

    Raises:
        ValueError: the metadata is malformed, or has a requirement that cannot be judged. Names the prompt.
    """
    try:
        tag = metadata.get("tag")
        if tag is not None:
            _known("tag", tag, TAGS)
        include = _entries("include", metadata["include"])
        exclude = _entries("exclude", metadata.get("exclude") or [])
        if not include:
            raise ValueError("include is empty: expected at least one object")
        return Request(
            tuple(_wanted(entry, place, classes) for place, entry in enumerate(include)),
            tuple(Unwanted(_name(entry, "exclude", classes), _count(entry, "exclude")) for entry in exclude),
            tag == "counting",
        )
    except ValueError as error:
        raise ValueError(f"metadata of the prompt {prompt!r}: {error}") from None


def _entries(key: str, value: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"{key}={value!r}: expected a list of objects")
    for entry in value:
        if not isinstance(entry, Mapping):
            raise ValueError(f"{key} has {entry!r}: expected a mapping with class and count")
    return value


def _wanted(entry: Mapping[str, Any], place: int, classes: Collection[str]) -> Wanted:
    color, position = entry.get("color"), entry.get("position")
    if color is not None:
        _known("include color", color, COLORS)
    return Wanted(
        _name(entry, "include", classes),
        _count(entry, "include"),
        color,
        None if position is None else _position(position, place),
    )


def _name(entry: Mapping[str, Any], key: str, classes: Collection[str]) -> str:
    return _known(f"{key} class", entry.get("class"), classes)


def _count(entry: Mapping[str, Any], key: str) -> int:
    count = entry.get("count")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"{key} count={count!r} of {entry['class']!r}: expected a whole number from 1 on")
    return count


def _position(position: Any, place: int) -> tuple[str, int]:
    if not isinstance(position, Sequence) or isinstance(position, str) or len(position) != 2:
        raise ValueError(
            f'include position={position!r}: expected a relation and an entry, e.g. ["left of", 0]'
        )
    relation, target = position
    _known("include position", relation, RELATIONS)
    if not isinstance(target, int) or isinstance(target, bool) or not 0 <= target < place:
        raise ValueError(
            f"include position={list(position)!r} in entry {place}: its target must be an earlier entry, "
            + (f"0 to {place - 1}" if place else "and the first entry has none")
        )
    return relation, target


def _known(what: str, name: Any, known: Iterable[str]) -> str:
    known = tuple(known)
    if name in known:
        return str(name)
    close = get_close_matches(str(name), known, n=1, cutoff=0.5)
    meant = f"; did you mean {close[0]!r}?" if close else "."
    names = ", ".join(known) if len(known) <= MAX_LISTED else f"{len(known)} names, of COCO's classes"
    raise ValueError(f"{what}={name!r} is unknown{meant} Known: {names}")
