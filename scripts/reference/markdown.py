"""Markdown that the reference pages share."""

from collections.abc import Iterable

MADE = "<!-- Made by `make reference`; edit {source} instead. -->\n"


def cell(text: str) -> str:
    """Return text for a cell of a table: one line, with bars and angle brackets escaped outside code."""
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    parts[::2] = [
        part.replace("<", "&lt;").replace("*", "\\*").replace("${", "&#36;{") for part in parts[::2]
    ]
    return "`".join(parts)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table with a header and rows of finished cells."""
    head = list(header)
    lines = [head, ["---"] * len(head), *rows]
    body = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f'<div class="keys" markdown>\n\n{body}\n</div>\n'


def code(text: str) -> str:
    """Return text as code for a cell of a table; nothing for an empty text."""
    return f"`{text}`".replace("|", "\\|") if text else ""
