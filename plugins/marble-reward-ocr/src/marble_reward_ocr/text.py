"""When two texts are the same: case, white space, Unicode's equivalences and letters that look alike."""

import re
import unicodedata
from collections.abc import Callable

# Unicode 16's Default_Ignorable_Code_Point: what is not seen, such as zero width, soft hyphens, byte order
# marks, marks of direction and variation selectors.
UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)
# Lower-case letters of other alphabets and the Latin ones whose shape they or their capitals share: as case
# does not matter, both count, so Cyrillic "в" is "b" because "В" is "B".
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
    """`text` without what is not seen, composed (NFC), in lower case and without white space."""
    composed = unicodedata.normalize("NFC", UNSEEN.sub("", text))
    return unicodedata.normalize("NFC", "".join(composed.lower().split()))


def compatible(text: str) -> str:
    """As `canonical`, with full width, ligatures, superscripts and the like as what they stand for (NFKC)."""
    return canonical(
        unicodedata.normalize("NFKC", canonical(unicodedata.normalize("NFKC", UNSEEN.sub("", text))))
    )


def lookalike(text: str) -> str:
    """As `compatible`, with plain quotes and dashes, and Greek and Cyrillic letters as Latin ones alike."""
    return canonical(compatible(text).translate(ALIKE))


FOLDS: dict[str, Callable[[str], str]] = {
    "canonical": canonical,
    "compatible": compatible,
    "lookalike": lookalike,
}
