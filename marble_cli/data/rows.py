"""Read text files as rows (lines of text or JSON, or tables), and check and clean their texts."""

import codecs
import csv
import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from marble_cli.errors import DataError

Row = dict[str, Any]

# Byte-order marks at the beginning of a file. UTF-32's come first, because they begin like UTF-16's.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
BYTE_ORDER_MARK = "\ufeff"
# Characters without width, and blank letters. They are removed only around a text: two of them join letters
# within a word.
INVISIBLE = "\u00ad\u115f\u1160\u180e\u200b\u200c\u200d\u2060\u2800\u3164\ufeff\uffa0"
EDGES = re.compile(rf"\A[\s{INVISIBLE}]+|[\s{INVISIBLE}]+\Z")
# Except tabs and line ends. U+FFFE is a byte-order mark read in the wrong order.
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]|\r(?!\n)")
NO_LETTERS = ("Cf", "Mn", "Me")  # Unicode categories: format characters and combining marks


class RowError(ValueError):
    """Describes what is wrong with one line or row."""


@dataclass(frozen=True)
class SourceRows:
    """The unparsed rows of a prompt file or dataset, and how to parse one."""

    where: str  # the file or dataset, for messages
    unit: str  # "line" or "row", for messages
    expected: str  # a sentence on what a row should hold, for messages
    raw: Iterable[Any]
    parse: Callable[[Any], Row | None]  # None for a blank row; raises RowError


def text_rows(path: Path, key: str) -> SourceRows:
    """Read one prompt per line; rows have it under `key`."""

    def parse(line: bytes) -> Row | None:
        decoded = _decode(line)
        try:
            text = clean_text(decoded)
        except RowError as error:
            raise RowError(f"it holds {error}") from None
        return {key: text} if text else None

    return SourceRows(str(path), "line", "Expected one prompt per line, in UTF-8.", _read_lines(path), parse)


def json_rows(path: Path, key: str) -> SourceRows:
    """Read one JSON object per line; a .json file may be one list, of objects or of prompts for `key`."""
    expected = 'Expected an object such as {"prompt": "a red sign that says \\"47\\"", "text": "47"}.'
    lines = _read_lines(path)
    content = b"\n".join(lines if path.suffix.lower() == ".json" else ())
    content = content.removeprefix(codecs.BOM_UTF8).lstrip()
    if not content.startswith(b"["):
        return SourceRows(str(path), "line", expected, lines, _parse_json)
    try:
        entries = json.loads(content, object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as a list in JSON: {error}. {expected}") from None

    def parse(entry: Any) -> Row | None:
        row = {key: entry} if isinstance(entry, str) else entry
        if not isinstance(row, dict):
            raise RowError("neither a prompt nor a JSON object")
        return row

    return SourceRows(str(path), "entry", expected, entries, parse)


def separated_rows(path: Path, separator: str) -> SourceRows:
    """Read a table with a line of headings: .csv, or .tsv with tabs; every cell is text, or None if empty.

    Raises:
        DataError: the file cannot be read as such a table.
    """
    expected = "Expected a line of headings, and as many cells in every row."
    text = b"\n".join(_read_lines(path)).decode("utf-8-sig", "surrogateescape")
    try:
        headings, *rows = _split_cells(text, separator) or [[]]
    except RowError as error:
        raise DataError(
            f"{path} cannot be read as a table: {error}. Expected a cell that begins with a double quote to "
            'end with one, and those within it doubled: """47"" in red".'
        ) from None
    headings = [strip_edges(heading) for heading in headings]
    if twice := [name for name in dict.fromkeys(headings) if name and headings.count(name) > 1]:
        raise DataError(
            f"{path}: several columns have the heading {twice[0]!r}. Expected different headings."
        )

    def parse(cells: list[str]) -> Row | None:
        if not cells:
            return None
        if len(cells) != len(headings):
            raise RowError(f"{len(cells)} cells under {len(headings)} headings")
        if [strip_edges(cell) for cell in cells] == headings:
            raise RowError("the headings again, as where two tables were joined")
        return {heading: cell or None for heading, cell in zip(headings, cells, strict=True)}

    return SourceRows(str(path), "row", expected, rows, parse)


def _split_cells(text: str, separator: str) -> list[list[str]]:
    """Split a table into rows of cells, without the double quotes around a cell.

    Tables with tabs are also published without such quotes: one where a quote begins a cell and does not
    enclose it, as in PartiPrompts, or runs on into another row, is taken as it stands.

    Raises:
        RowError: a cell's quotes are not closed, or a cell is too long.
    """
    lines, fault = [*io.StringIO(text, newline="")], ""
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE) if separator == "\t" else (csv.QUOTE_MINIMAL,):
        table = csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)
        try:
            rows = [(cells, table.line_num) for cells in table]
        except csv.Error as error:
            fault = f"{error} in line {table.line_num}"
            continue
        if separator != "\t" or not _joins_rows(lines, [end for _, end in rows]):
            return [cells for cells, _ in rows]
    raise RowError(fault)


def _joins_rows(lines: list[str], ends: list[int]) -> bool:
    """Whether a row of several lines begins and ends with a line that would be a whole row.

    A cell of several lines leaves one of the two without all its tabs, unless it holds tabs or is alone in
    its row: a lone column is not told apart. A line that begins with a tab counts as indented text.

    Args:
        lines: of the table, with the headings first.
        ends: number of lines up to the end of each row.
    """

    def whole(line: str) -> bool:
        return line.count("\t") == lines[0].count("\t") > 0 and line[0] != "\t"

    rows = pairwise([0, *ends])
    return any(last - first > 1 and whole(lines[first]) and whole(lines[last - 1]) for first, last in rows)


def _read_lines(path: Path) -> list[bytes]:
    """Return the file's lines in UTF-8; UTF-16 and UTF-32 are converted if the file has a byte-order mark.

    Raises:
        DataError: the file is in UTF-16 or UTF-32, and damaged or without a byte-order mark.
    """
    content = path.read_bytes()
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark)), None)
    if encoding is not None:
        try:
            content = content.decode(encoding).encode("utf-8")
        except UnicodeError as error:
            raise DataError(
                f"{path} begins with the mark of {encoding.upper()} and is damaged ({error}). "
                "Expected text in UTF-8."
            ) from None
    elif (nulls := content.count(0)) > len(content) / 4:
        likely = "UTF-32" if nulls > len(content) * 0.6 else "UTF-16"
        order = "BE" if content[0] == 0 else "LE"
        raise DataError(
            f"{path} seems to be {likely} without a mark: {nulls:,} of its {len(content):,} bytes are "
            f"0. Expected text in UTF-8: iconv -f {likely}{order} -t UTF-8 {path}"
        )
    return content.split(b"\n")


def strip_edges(text: str) -> str:
    """Strip white space, invisible characters and byte-order marks."""
    return EDGES.sub("", text)


def clean_text(text: str) -> str:
    """Strip white space, invisible characters and byte-order marks; return "" if no letter remains.

    Raises:
        RowError: the text holds a control character other than tabs and line ends, or half a character.
    """
    if text.isascii() and text.isprintable():
        return text.strip()
    text = strip_edges(text)
    return "" if all(unicodedata.category(letter) in NO_LETTERS for letter in text) else strip_marks(text)


def strip_marks(text: str) -> str:
    """Remove byte-order marks.

    Raises:
        RowError: see `clean_text`.
    """
    text = text.replace(BYTE_ORDER_MARK, "")
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
    text = strip_edges(_decode(line))
    if not text:
        return None
    try:
        row = _decoder.decode(text)
    except RowError:
        raise
    except json.JSONDecodeError as error:
        raise RowError(f"not valid JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:  # thousands of digits or of nested brackets
        raise RowError(f"JSON that cannot be read ({error})") from None
    if not isinstance(row, dict):
        raise RowError("no JSON object")
    return row


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> Row:
    keys = [strip_edges(key) for key, _ in pairs]
    row = dict(zip(keys, (value for _, value in pairs), strict=True))
    if len(row) < len(pairs):
        raise RowError(f'the key "{next(key for key in keys if keys.count(key) > 1)}" appears twice')
    return row


_decoder = json.JSONDecoder(object_pairs_hook=_refuse_duplicates)  # `json.loads` would make one for each row
