"""Text in pictures: no mathematics, in fonts that have its letters, in as many lines as there is room for."""

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
logging.getLogger("matplotlib.font_manager").setLevel(
    logging.ERROR
)  # that a font has no bold face is no news

FONT = "DejaVu Sans"  # comes with matplotlib
NO_TEXT_FONTS = (
    "Last Resort",
    "cm",
    "STIXNonUnicode",
    "STIXSize",
)  # beginnings: boxes, and parts of formulas
ABSENT = "□"  # for a letter that no font has
UNKNOWN = "\ufffd"  # for what is no letter
LONGEST = 2000  # letters of a text that are looked at
SELECTORS = (
    *range(0xFE00, 0xFE10),
    *range(0xE0100, 0xE01F0),
    0x034F,
)  # unseen, and of no category that says so
ELLIPSIS = " …"
MARKS = "[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff]"  # that stack upon a letter
STACKED = re.compile(f"({MARKS}{{3}}){MARKS}+")  # more than any language has, and higher than a line


def caption(text: str, columns: int, lines: int) -> str:
    """Return `text` as a picture may show it: wrapped, cut, with □ for letters that no font has.

    Args:
        text: a prompt, a name, anything.
        columns: width of a line in letters; East Asian ones count twice.
        lines: at most.
    """
    drawable = "".join(letter if _family(letter) else ABSENT for letter in _plain(text))
    if ABSENT in drawable and ABSENT not in text:
        _tell()
    wrapped = [
        line.plain.rstrip() for line in Text(drawable).wrap(Console(width=80), columns, overflow="fold")
    ]
    if len(wrapped) > lines or len(text) > LONGEST:
        wrapped = wrapped[:lines]
        wrapped[-1] = set_cell_size(wrapped[-1], columns - len(ELLIPSIS)).rstrip() + ELLIPSIS
    return "\n".join(wrapped)


def fonts(texts: Iterable[str]) -> dict[str, Any]:
    """Return matplotlib's settings for a picture with these texts: no mathematics, fonts that have them."""
    letters = dict.fromkeys(letter for text in texts for letter in _plain(text))
    found = dict.fromkeys(family for letter in letters if (family := _family(letter)))
    return {
        "text.parse_math": False,
        "text.usetex": False,
        "font.family": list(dict.fromkeys([FONT, *found])),
    }


def _plain(text: str) -> str:
    """The beginning of a text on one line, composed and without what is not seen."""
    seen = unicodedata.normalize("NFC", "".join(map(_seen, text[:LONGEST])))
    return " ".join(STACKED.sub(r"\1", seen).split())


def _seen(letter: str) -> str:
    """A letter as it is seen: white space as a space, marks of direction and the like as nothing."""
    category = unicodedata.category(letter)
    if letter.isspace() or category.startswith("Z"):
        return " "
    if category == "Cf" or ord(letter) in SELECTORS:
        return ""
    return UNKNOWN if category.startswith("C") else letter


@cache
def _family(letter: str) -> str | None:
    """The first font family that has a letter, matplotlib's own before others; None if none has it."""
    return next((family for family in _families() if ord(letter) in _letters(family)), None)


@cache
def _families() -> tuple[str, ...]:
    names = {entry.name for entry in font_manager.fontManager.ttflist if entry.style == "normal"}
    others = sorted(names - {FONT}, key=lambda name: ("Sans" not in name, name))
    return (FONT, *(name for name in others if not name.startswith(NO_TEXT_FONTS)))


@cache
def _letters(family: str) -> frozenset[int]:
    """The code points that a family has, bold too, and matplotlib can draw: it cannot draw fonts of bitmaps."""
    try:
        faces = [font_manager.FontProperties(family=[family], weight=weight) for weight in ("normal", "bold")]
        paths = [font_manager.findfont(face, fallback_to_default=False) for face in faces]
        known = [font_manager.get_font(path) for path in paths]
        return frozenset.intersection(
            *(frozenset(font.get_charmap() if font.scalable else ()) for font in known)
        )
    except (OSError, RuntimeError, ValueError):  # a damaged font, or one that is gone
        return frozenset()


@cache
def _tell() -> None:
    """Warn, once."""
    log.warning(
        "some letters are in no installed font and stand as %s in pictures. Install one that has them, "
        "such as Noto Sans CJK.",
        ABSENT,
    )
