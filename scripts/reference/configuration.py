"""Every configuration key with its type, default, choices, range and comment, from schema and conf/*.yaml.

Each key has its comment in one file, behind the value or on the lines directly above. A key that no file sets
is documented as a comment of the form `# key: default # comment` in the place that the key would have.
"""

import dataclasses
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from marble_cli.config.keys import fields, required_kind
from marble_cli.config.ranges import range_of
from marble_cli.config.schema import AspectConfig, RunConfig

CONF = Path(__file__).resolve().parents[2] / "conf"

# The files that document keys. The first one that holds a key documents that key.
FILES = (
    "config", "model/sd3", "data/files", "rewards/compressibility", "algorithm/nft", "balance/marble",
    "optimizer/adamw", "rollout/default", "evaluation/default", "trainer/default", "logging/default",
    "launcher/local", "launcher/slurm",
)  # fmt: skip
LINE = re.compile(r"(?P<indent> *)(?P<off># )?(?P<key>\w+):(?: +(?P<value>.*))?")


@dataclass(frozen=True)
class Key:
    """One configuration key.

    `path` is dotted, with `<name>` for a name that the user chooses. `default` is the text in `file`, a path
    below conf/. `choices` are empty and `range` is "" if the type alone says which values are accepted.
    """

    path: str
    type: str
    default: str
    choices: tuple[str, ...]
    range: str
    comment: str
    file: str


@dataclass(frozen=True)
class Entry:
    """What a YAML file says of a key."""

    default: str
    comment: str
    file: str


def keys() -> list[Key]:
    """Return every key of the schema once, in the order of the schema.

    The keys of `eval_rewards` are those of `rewards`, with the same comments.

    Raises:
        ValueError: a key is documented in no file, or without a comment.
    """
    entries = _read_entries()
    found = []
    for path, kind, values in _walk(RunConfig):
        entry = entries.get(path.replace("eval_rewards.<name>.", "rewards.<name>."))
        if entry is None or not entry.comment:
            raise ValueError(
                f"{path} has no comment in conf/. Expected one at its line in one of {', '.join(FILES)}."
            )
        base = required_kind(kind)
        choices = (
            tuple(member.value for member in base)
            if isinstance(base, type) and issubclass(base, Enum)
            else ()
        )
        found.append(Key(path, name_type(kind), entry.default, choices, values, entry.comment, entry.file))
    return found


def name_type(kind: Any) -> str:
    """Return the name of a key's type for a reader, e.g. "float or null" or "list of str"."""
    if required_kind(kind) is not kind:
        return " or ".join(map(name_type, typing.get_args(kind)))
    if kind is type(None):
        return "null"
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is list:
        return f"list of {name_type(arguments[0])}"
    if typing.get_origin(kind) is dict:
        return f"mapping of names to {name_type(arguments[1])}"
    if kind is Any:
        return "any"
    if kind is AspectConfig:
        return "keys of a reward"
    return "choice" if issubclass(kind, Enum) else str(kind.__name__)


def _walk(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield path, type and range of every key below a dataclass."""
    ranges = {key.name: range_of(key) for key in dataclasses.fields(node)}
    for name, kind in fields(node).items():
        inner = typing.get_args(kind)[1] if typing.get_origin(kind) is dict else None
        if dataclasses.is_dataclass(kind):
            yield from _walk(kind, f"{prefix}{name}.")
        elif dataclasses.is_dataclass(inner) and inner is not AspectConfig:  # whose keys are a reward's own
            yield from _walk(inner, f"{prefix}{name}.<name>.")
        else:
            values = ranges[name]
            yield f"{prefix}{name}", kind, values.expected if values else ""


def _read_entries() -> dict[str, Entry]:
    """Return the entry of each key, the first one if several files have the key."""
    known = {path for path, _, _ in _walk(RunConfig)}
    entries: dict[str, Entry] = {}
    for name in FILES:
        group = "" if name == "config" else name.split("/")[0]
        for path, entry in read_file(CONF / f"{name}.yaml", group, known):
            entries.setdefault(path, entry)
    return entries


def read_file(file: Path, group: str, known: set[str]) -> Iterator[tuple[str, Entry]]:
    """Yield the `known` keys of a YAML file of `group` with what the file says of them.

    A comment behind the value comes first; without one, the comment lines directly above are taken.
    """
    above: list[str] = []
    parents: list[tuple[int, str]] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        match = LINE.fullmatch(line.rstrip())
        if match is not None:
            indent = len(match["indent"])
            parents = [(depth, key) for depth, key in parents if depth < indent]
            path = _path(group, [key for _, key in parents], match["key"])
            if match["off"] is None or path in known:
                value, _, behind = (match["value"] or "").partition("# ")
                if match["off"] is None:
                    parents.append((indent, match["key"]))
                if path in known:
                    comment = behind.strip() or " ".join(above)
                    yield path, Entry(value.strip(), comment, file.relative_to(CONF).as_posix())
                above = []
                continue
        stripped = line.strip()
        above = [*above, stripped.removeprefix("# ")] if stripped.startswith("# ") else []


def _path(group: str, parents: list[str], key: str) -> str:
    """Return the dotted path of a key, with `<name>` for the names of rewards and prompt sources."""
    parts = [group, *parents, key] if group else [*parents, key]
    if parts[0] == "rewards" and len(parts) > 1:
        parts[1] = "<name>"
    if parts[:2] == ["data", "sources"] and len(parts) > 2:
        parts[2] = "<name>"
    return ".".join(parts)
