"""Fold texts so that equal ones compare equal: case, white space, Unicode's equivalences, lookalikes."""

import re
import unicodedata
from collections.abc import Callable

# Unicode 16's Default_Ignorable_Code_Point: invisible characters such as zero-width ones, soft hyphens, byte
# order marks, marks of direction and variation selectors.
INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)
# Lower-case letters of other alphabets, and the Latin letters that share their shape or that of their
# capitals. Case does not matter, so Cyrillic "в" becomes "b" because "В" looks like "B".
LETTERS = ("авекмнорстухіјѕһԁԛԝαβεζηικμνορτυχ", "abekmhopctyxijshdqwabezhikmnoptyx")
MARKS = {
    "'": "\u2018\u2019\u201a\u201b\u2032\u02bc\u02b9\u02c8\u00b4\u055a\ua78c",
    '"': "\u201c\u201d\u201e\u201f\u2033\u02ba",
    "-": "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2043\u02d7\u2e3a\u2e3b\u058a\u30fc",
    "/": "\u2044\u2215",
    ":": "\u2236\ua789",
    ".": "\u00b7\u2024\u2027\u22c5\u30fb",
    "~": "\u223c\u02dc\u301c",
    "x": "\u00d7\u2715",
}
ALIKE = str.maketrans(
    dict(zip(*LETTERS, strict=True)) | {one: mark for mark, many in MARKS.items() for one in many}
)


def canonical(text: str) -> str:
    """Remove invisible characters, compose (NFC), turn to lower case and remove white space.

    A sigma is one letter wherever it stands: `lower` writes the last one of a word otherwise.
    """
    composed = unicodedata.normalize("NFC", INVISIBLE.sub("", text))
    return unicodedata.normalize("NFC", "".join(composed.lower().replace("ς", "σ").split()))


def compatible(text: str) -> str:
    """Fold like `canonical`, and also replace full width, ligatures, superscripts and the like (NFKC)."""
    return canonical(
        unicodedata.normalize("NFKC", canonical(unicodedata.normalize("NFKC", INVISIBLE.sub("", text))))
    )


def lookalike(text: str) -> str:
    """Fold like `compatible`, and also map quotes, dashes, Greek and Cyrillic letters to Latin lookalikes.

    Quotes before NFKC, which takes some apart; letters without their accents.
    """
    folded = compatible(text.translate(ALIKE))
    return canonical(unicodedata.normalize("NFD", folded).translate(ALIKE))


FOLDS: dict[str, Callable[[str], str]] = {
    "canonical": canonical,
    "compatible": compatible,
    "lookalike": lookalike,
}
