"""Text files as rows: one prompt a line, or one JSON object a line; and what a text may hold."""

import codecs
import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marble_cli.errors import DataError

Row = dict[str, Any]

MARKS = {  # at the beginning of a file; those of UTF-32 begin like those of UTF-16
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
MARK = "\ufeff"
INVISIBLE = (
    "\u00ad\u180e\u200b\u200c\u200d\u2060\ufeff"  # without width; two of them join letters within a word
)
EDGES = re.compile(rf"\A[\s{INVISIBLE}]+|[\s{INVISIBLE}]+\Z")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)")  # all but tabs and line ends
NO_LETTERS = ("Cf", "Mn", "Me")  # format characters, and marks that stand on a letter


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
        decoded = _decode(line)
        try:
            text = clean(decoded)
        except RowError as error:
            raise RowError(f"it holds {error}") from None
        return {key: text} if text else None

    return Rows(str(path), "line", "Expected one prompt a line, in UTF-8.", _lines(path), parse)


def json_rows(path: Path) -> Rows:
    """One JSON object a line."""
    expected = 'Expected an object such as {"prompt": "a red sign that says \\"47\\"", "text": "47"}.'
    return Rows(str(path), "line", expected, _lines(path), _parse_json)


def _lines(path: Path) -> list[bytes]:
    """The file's lines in UTF-8.

    Raises:
        DataError: it is in UTF-16 or UTF-32, and damaged or without the mark that says so.
    """
    content = path.read_bytes()
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), None)
    if encoding is not None:
        try:
            content = content.decode(encoding).encode("utf-8")
        except UnicodeError as error:
            raise DataError(
                f"{path} begins with the mark of {encoding.upper()} and is damaged ({error}). Expected text in UTF-8."
            ) from None
    elif (nulls := content.count(0)) > len(content) / 4:
        likely = "UTF-32" if nulls > len(content) * 0.6 else "UTF-16"
        order = "BE" if content[0] == 0 else "LE"
        raise DataError(
            f"{path} seems to be {likely} without a mark: {nulls:,} of its {len(content):,} bytes are 0. Expected text in "
            f"UTF-8: iconv -f {likely}{order} -t UTF-8 {path}"
        )
    return content.split(b"\n")


def clean(text: str) -> str:
    """Without the marks of encodings, and without white space and invisible characters around it; "" if none is left.

    Raises:
        RowError: the text holds a control character other than tabs and line ends, or half a character.
    """
    if text.isascii() and text.isprintable():
        return text.strip()
    text = EDGES.sub("", text)
    return "" if all(unicodedata.category(letter) in NO_LETTERS for letter in text) else legible(text)


def legible(text: str) -> str:
    """Without the marks of encodings.

    Raises:
        RowError: as `clean`.
    """
    text = text.replace(MARK, "")
    if found := CONTROL.search(text):
        known = "a lone carriage return" if found.group() == "\r" else "a control character"
        raise RowError(f"{known} (U+{ord(found.group()):04X}) at character {found.start() + 1}")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise RowError("half a character (a lone surrogate)")
    return text


def _decode(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError(f"byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8") from None


def _parse_json(line: bytes) -> Row | None:
    text = EDGES.sub("", _decode(line))
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
