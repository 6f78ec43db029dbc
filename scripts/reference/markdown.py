"""Markdown that the reference pages share."""

from collections.abc import Iterable
from html import escape

MADE = "<!-- Made by `make reference`; edit {source} instead. -->\n"


def cell(text: str) -> str:
    """Return text for a cell of a table: one line, with what Markdown would read escaped outside code."""
    parts = " ".join(text.split()).split("`")
    parts[::2] = [_escape(part) for part in parts[::2]]
    parts[1::2] = [code(part) for part in parts[1::2]]
    return "".join(parts)


def code(text: str) -> str:
    """Return text as code for a cell of a table; nothing for an empty text.

    A bar would end the cell, and a table keeps the backslash of an escaped one.
    """
    if "|" in text:
        return f"<code>{escape(text, quote=False).replace('|', '&#124;')}</code>"
    return f"`{text}`" if text else ""


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table with a header and rows of finished cells."""
    head = list(header)
    lines = [head, ["---"] * len(head), *rows]
    body = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f'<div class="keys" markdown>\n\n{body}\n</div>\n'


def _escape(text: str) -> str:
    for letter, written in (("|", "&#124;"), ("<", "&lt;"), ("*", "\\*"), ("${", "&#36;{")):
        text = text.replace(letter, written)
    return text
