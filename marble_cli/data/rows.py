"""Text files as rows: one prompt a line, or one JSON object a line."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class RowError(ValueError):
    """What is wrong with one line or row."""


@dataclass(frozen=True)
class Rows:
    """The rows of a file or dataset as they come.

    `where` names it, `unit` is what its rows are called, `expected` what one should be; `parse` turns a raw row into
    a mapping, into None if it is blank, or raises `RowError`.
    """

    where: str
    unit: str
    expected: str
    raw: Iterable[Any]
    parse: Callable[[Any], Row | None]


def text_rows(path: Path, key: str) -> Rows:
    """One prompt a line, put under `key`."""

    def parse(line: bytes) -> Row | None:
        text = _decode(line)
        return {key: text} if text else None

    return Rows(str(path), "line", "Expected one prompt a line, in UTF-8.", _lines(path), parse)


def json_rows(path: Path) -> Rows:
    """One JSON object a line."""
    expected = 'Expected an object such as {"prompt": "a red sign that says \\"47\\"", "text": "47"}.'
    return Rows(str(path), "line", expected, _lines(path), _parse_json)


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")


def _decode(line: bytes) -> str:
    try:
        return line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise RowError(f"byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8") from None


def _parse_json(line: bytes) -> Row | None:
    text = _decode(line)
    if not text:
        return None
    try:
        row = json.loads(text, object_pairs_hook=_distinct)
    except RowError:
        raise
    except json.JSONDecodeError as error:
        raise RowError(f"not valid JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
        raise RowError(f"JSON that cannot be read ({error})") from None
    if not isinstance(row, dict):
        raise RowError("no JSON object")
    return row


def _distinct(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise RowError(f'the key "{next(key for key in keys if keys.count(key) > 1)}" stands twice')
    return row
