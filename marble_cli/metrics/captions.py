"""Prepare text for pictures: without mathematics, in fonts that have its letters, wrapped and cut to size."""

import logging
import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import Any

from matplotlib import font_manager
from rich.cells import set_cell_size
from rich.console import Console
from rich.text import Text

log = logging.getLogger("marble")
# matplotlib warns about every font without a bold face.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

FONT = "DejaVu Sans"  # ships with matplotlib
# First letters of the names of fonts that have boxes or parts of formulas instead of text.
NO_TEXT_FONTS = ("Last Resort", "cm", "STIXNonUnicode", "STIXSize")
ABSENT = "□"  # replaces a letter that no font has
UNKNOWN = "\ufffd"  # replaces a character that is no letter
LONGEST = 2000  # letters; the rest of a text is ignored
# Invisible characters whose Unicode category does not show this.
SELECTORS = (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0), 0x034F)
ELLIPSIS = " …"
MARKS = "[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff]"  # marks that stack on a letter
STACKED = re.compile(f"({MARKS}{{3}}){MARKS}+")  # more marks than any language uses, and higher than a line


def caption(text: str, columns: int, lines: int) -> str:
    """Return `text` for a picture: wrapped and cut, with □ for letters that no font has.

    Args:
        text: any text, such as a prompt or a name.
        columns: the width of a line in letters; East Asian letters count twice.
        lines: the greatest number of lines.
    """
    drawable = "".join(letter if _family(letter) else ABSENT for letter in _plain(text))
    if ABSENT in drawable and ABSENT not in text:
        _warn_once()
    wrapped = [
        line.plain.rstrip() for line in Text(drawable).wrap(Console(width=80), columns, overflow="fold")
    ]
    if len(wrapped) > lines or len(text) > LONGEST:
        wrapped = wrapped[:lines]
        wrapped[-1] = set_cell_size(wrapped[-1], columns - len(ELLIPSIS)).rstrip() + ELLIPSIS
    return "\n".join(wrapped)


def fonts(texts: Iterable[str]) -> dict[str, Any]:
    """Return matplotlib's settings for a picture with `texts`: no mathematics, fonts with their letters."""
    letters = dict.fromkeys(letter for text in texts for letter in _plain(text))
    families = dict.fromkeys(family for letter in letters if (family := _family(letter)))
    return {
        "text.parse_math": False,
        "text.usetex": False,
        "font.family": list(dict.fromkeys([FONT, *families])),
    }


def _plain(text: str) -> str:
    """Return the beginning of a text on one line, composed and without invisible characters."""
    visible = unicodedata.normalize("NFC", "".join(map(_visible, text[:LONGEST])))
    return " ".join(STACKED.sub(r"\1", visible).split())


def _visible(letter: str) -> str:
    """Replace white space by a space, invisible characters by nothing, control characters by `UNKNOWN`."""
    category = unicodedata.category(letter)
    if letter.isspace() or category.startswith("Z"):
        return " "
    if category == "Cf" or ord(letter) in SELECTORS:
        return ""
    return UNKNOWN if category.startswith("C") else letter


@cache
def _family(letter: str) -> str | None:
    """Return the first font family that has a letter, starting with matplotlib's own; None if none has it."""
    return next((family for family in _families() if ord(letter) in _letters(family)), None)


@cache
def _families() -> tuple[str, ...]:
    names = {entry.name for entry in font_manager.fontManager.ttflist if entry.style == "normal"}
    others = sorted(names - {FONT}, key=lambda name: ("Sans" not in name, name))
    return (FONT, *(name for name in others if not name.startswith(NO_TEXT_FONTS)))


@cache
def _letters(family: str) -> frozenset[int]:
    """Return the code points that a family has in normal and bold face; none for bitmap fonts."""
    try:
        faces = [font_manager.FontProperties(family=[family], weight=weight) for weight in ("normal", "bold")]
        paths = [font_manager.findfont(face, fallback_to_default=False) for face in faces]
        fonts = [font_manager.get_font(path) for path in paths]
        return frozenset.intersection(
            *(frozenset(font.get_charmap() if font.scalable else ()) for font in fonts)
        )
    except (OSError, RuntimeError, ValueError):  # the font file is damaged or was deleted
        return frozenset()


@cache
def _warn_once() -> None:
    log.warning(
        "some letters are in no installed font and appear as %s in pictures. Install a font that has them, "
        "such as Noto Sans CJK.",
        ABSENT,
    )
