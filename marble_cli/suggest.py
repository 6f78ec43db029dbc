"""The end of a message about an unknown name."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known name was probably meant, and what names there are.

    Args:
        name: the unknown one.
        known: the known ones.
    """
    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    meant = f"; did you mean {close[0]!r}?" if close else "."
    return f"{meant} Known: {', '.join(known) or 'none'}"
