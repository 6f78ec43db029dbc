"""Finish an error message about an unknown name."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message: the most similar known name, and all known names.

    Args:
        name: the unknown name.
        known: the known names.
    """
    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    suggestion = f"; did you mean {close[0]!r}?" if close else "."
    return f"{suggestion} Known: {', '.join(known) or 'none'}"
