"""Parse words of the command line into Hydra's overrides, keeping the values of text keys as written."""

import dataclasses
import re
import shlex
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from hydra.core.override_parser.overrides_parser import create_functions
from hydra.core.override_parser.overrides_visitor import HydraErrorListener, HydraOverrideVisitor
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    Override,
    OverrideType,
    Quote,
    QuotedString,
    Sweep,
    ValueType,
)
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideLexer import (  # type: ignore[attr-defined]
    CommonTokenStream,
    InputStream,
    OverrideLexer,
)
from hydra.grammar.gen.OverrideParser import OverrideParser
from omegaconf.errors import GrammarParseError
from omegaconf.grammar_parser import parse as parse_interpolation

from marble_cli.config.keys import fields, kind_of, required_kind, unknown_key
from marble_cli.config.schema import RewardConfig, RunConfig
from marble_cli.errors import ConfigError
from marble_cli.redaction import learn_options, learn_unread

ASSIGNMENT = re.compile(r"(?P<key>\+{0,2}(?P<name>[\w.$-]+))=(?P<value>.*)", re.DOTALL | re.ASCII)
EXPECTED = {int: "a whole number", float: "a number", bool: "true or false"}
SIGNS = {"": OverrideType.CHANGE, "+": OverrideType.ADD, "++": OverrideType.FORCE_ADD}


@dataclass(frozen=True)
class Written:
    """A number, boolean, null or cast as Hydra reads it, with the text as written."""

    value: Any
    text: str


class Reader(HydraOverrideVisitor):
    """Hydra's own visitor, except that numbers, booleans, nulls and calls keep their text."""

    def visitPrimitive(self, ctx: Any) -> Any:  # noqa: N802
        value = super().visitPrimitive(ctx)
        return value if isinstance(value, (str, QuotedString)) else Written(value, ctx.getText().strip())

    def visitFunction(self, ctx: Any) -> Any:  # noqa: N802
        value = HydraOverrideVisitor(self.functions).visitFunction(ctx)
        return value if isinstance(value, Sweep | Glob) else Written(value, ctx.getText())


def parse(words: Sequence[str], root: Any = RunConfig) -> list[Override]:
    """Parse overrides in Hydra's grammar; `root` is the dataclass that has their keys.

    A key whose type is text takes its value as written: `run.name=1.10` is neither a number nor `1.1`.
    Quotes, backslashes and `${...}` keep Hydra's meaning, and so does null for a key that may be null. For
    such a key, a value that Hydra's lexer cannot read is text too.

    Raises:
        ConfigError: an override cannot be read, or gives several values.
    """
    overrides = []
    for word in words:
        override = _parse(word, root)
        if "${" not in word:  # a reference is no secret
            learn_options(_nested(override))
        overrides.append(override)
    return overrides


def parse_sweep(word: str) -> Override | None:
    """Parse an override that gives several values, each read as `parse` reads one; None if it gives one.

    A key of text gives several values too, if Hydra reads them so: a comma of one value needs quotes.
    """
    try:
        override = _read(word)
    except (HydraException, RecursionError):
        return None  # a text, or for `parse` to refuse
    if not override.is_sweep_override():
        return None
    kind, sweep = kind_of(override.key_or_group), override._value
    if isinstance(sweep, ChoiceSweep):
        values = [
            _settle(value, kind if required_kind(kind) is str or _is_container(kind, value) else Any)
            for value in sweep.list
        ]
        override._value = dataclasses.replace(sweep, list=values)
    return override


def _parse(word: str, root: Any) -> Override:
    assignment = ASSIGNMENT.fullmatch(word)
    kind = kind_of(assignment["name"], root) if assignment else None
    try:
        override: Override | None = _read(word)
    except (HydraException, RecursionError):
        override = None
    if assignment and (required_kind(kind) is str or _is_home(assignment["value"], kind)):
        text = _text(assignment["value"], override, kind)
        _check_interpolation(assignment["name"], text)
        return _assign(assignment, text)
    if override is None:
        learn_unread(word)
        raise ConfigError(_unreadable(word, assignment, kind, root))
    if override.is_sweep_override():
        learn_unread(word)
        raise ConfigError(
            f"override {word!r} asks for several values. Expected one; --multirun starts a run for each."
        )
    value = override._value
    if assignment and _is_container(kind, value):
        return _assign(assignment, _settle(value, kind))
    return dataclasses.replace(override, _value=_settle(value, Any), input_line=word)


def _nested(override: Override) -> dict[str, Any]:
    """Return what an override sets, in mappings by the parts of its key below `rewards.NAME`."""
    value = override.value()
    for part in reversed(override.key_or_group.split(".")[2:]):
        value = {part: value}
    return value if isinstance(value, dict) else {}


def _is_home(value: str, kind: Any) -> bool:
    """Return whether a value of any type is a path below the home, which Hydra cannot read."""
    return kind is Any and value.startswith("~")


def _read(word: str) -> Override:
    """Parse one override.

    Raises:
        HydraException: the grammar does not allow the word.
    """
    listener = HydraErrorListener()
    lexer = OverrideLexer(InputStream(word))
    lexer.removeErrorListeners()
    lexer.addErrorListener(listener)
    parser = OverrideParser(CommonTokenStream(lexer))
    parser.removeErrorListeners()
    parser.addErrorListener(listener)
    override: Override = Reader(create_functions()).visit(parser.override())  # type: ignore[no-untyped-call]
    return override


def _text(raw: str, override: Override | None, kind: Any) -> QuotedString | None:
    """Return the value of a text key."""
    value = override._value if override is not None else None
    if isinstance(value, Written) and value.value is None and kind is not str:
        return None
    return (
        value if isinstance(value, QuotedString) else _quote(value if isinstance(value, str) else raw.strip())
    )


def _check_interpolation(name: str, value: QuotedString | None) -> None:
    """Refuse text that holds `${` and that OmegaConf cannot read as an interpolation."""
    if value is None or "${" not in value.text:
        return
    try:
        parse_interpolation(value.text)
    except GrammarParseError:
        raise ConfigError(
            f"{name}={value.text}: ${{ begins a reference to another key. Expected e.g. ${{run.name}}."
        ) from None


def _quote(text: str) -> QuotedString:
    return QuotedString(text, Quote.single)


def _assign(assignment: re.Match[str], value: Any) -> Override:
    """Return the override that sets a key to `value`, whose texts are in quotes."""
    name = assignment["name"]
    sign = SIGNS[assignment["key"].removesuffix(name)]
    override = Override(sign, name, ValueType.ELEMENT, value)
    override.input_line = f"{assignment['key']}={override.get_value_element_as_str()}"
    return override


def _is_container(kind: Any, value: Any) -> bool:
    """Return whether `value` is a list or mapping whose elements or keys have types of their own."""
    kind = required_kind(kind)
    origin = typing.get_origin(kind)
    if isinstance(value, list):
        return origin is list
    return isinstance(value, dict) and (origin is dict or dataclasses.is_dataclass(kind))


def _settle(value: Any, kind: Any) -> Any:
    """Return `value` with its texts in quotes, and with what Hydra read for all other types."""
    base = required_kind(kind)
    if isinstance(value, list):
        inner = typing.get_args(base)[0] if typing.get_origin(base) is list else Any
        return [_settle(element, inner) for element in value]
    if isinstance(value, dict):
        return {key: _settle(part, _below(base, key)) for key, part in value.items()}
    if isinstance(value, Written):
        null = value.value is None and base is not kind
        return _quote(value.text) if base is str and not null else value.value
    return _quote(value) if isinstance(value, str) and kind is not Any else value


def _below(kind: Any, key: Any) -> Any:
    """Return the type of `key` in a mapping of type `kind`."""
    if typing.get_origin(kind) is dict:
        return typing.get_args(kind)[1]
    if dataclasses.is_dataclass(kind):
        return fields(kind).get(key, object if kind is RewardConfig else None)
    return kind


def _unreadable(word: str, assignment: re.Match[str] | None, kind: Any, root: Any) -> str:
    example = "Expected e.g. trainer.steps=10, balance=mgda, +rewards.mine={plugin: mine} or ~rewards.ocr."
    if assignment is None:
        return f"override {word!r} cannot be read. {example}"
    name, value, base = assignment["name"], assignment["value"], required_kind(kind)
    if kind is None and (reason := unknown_key(name, root)):
        return f"override {word!r}: {reason}"
    if base in EXPECTED:
        return f"{name}={value}: expected {EXPECTED[base]}."
    if isinstance(base, type) and issubclass(base, Enum):
        return f"{name}={value}: expected one of {', '.join(base.__members__)}."
    quoted = shlex.quote(f"{assignment['key']}={QuotedString(value, Quote.double).with_quotes()}")
    hint = f", e.g. {quoted}" if value.isprintable() and not value.startswith(("[", "{")) else ""
    return (
        f"override {word!r} cannot be read. Text with brackets, commas, quotes, = or letters beyond a to z "
        f"needs quotes of its own, inside those of the shell, also in a list or mapping{hint}"
    )
