"""Let standard output and error print any text, whatever the encoding of the terminal."""

import codecs
import io
import sys

ASCII = {
    "\u2026": "...",
    "\u2013": "-",
    "\u2014": "-",
    "\u2212": "-",
    "\u00b1": "+-",
    "\u00d7": "x",
    "\u221e": "inf",
    "\u2018": "'",
    "\u2019": "'",
    "\u201c": '"',
    "\u201d": '"',
    "\u2022": "*",
    "\u2501": "-",
    "\u2578": "-",
    "\u257a": "-",
    "\u00a0": " ",
}


def spell(error: UnicodeError) -> tuple[str, int]:
    r"""Replace characters that an encoding lacks, as a handler of `codecs.register_error`.

    A character becomes a similar one of ASCII, or its escape, such as \xfc.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    plain = (ASCII.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in missing)
    return "".join(plain), error.end


def take_every_text() -> None:
    """Make standard output and error replace characters that their encoding lacks, instead of raising."""
    codecs.register_error("marble", spell)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="marble")
