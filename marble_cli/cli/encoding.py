"""Standard streams that take every text, whatever the terminal's encoding."""

import codecs
import io
import sys

SPELLED = {
    "\u2026": "...", "\u2013": "-", "\u2014": "-", "\u2212": "-", "\u00b1": "+-", "\u00d7": "x", "\u221e": "inf", "\u2018": "'",
    "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2022": "*", "\u2501": "-", "\u2578": "-", "\u257a": "-", "\u00a0": " ",
}  # fmt: skip


def spell(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that an encoding lacks: a like one of ASCII, else its escape such as \\xfc."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    plain = (SPELLED.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in lacking)
    return "".join(plain), error.end


def take_every_text() -> None:
    """Let standard output and error spell what their encoding lacks, instead of raising once the work is done."""
    codecs.register_error("marble", spell)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="marble")
