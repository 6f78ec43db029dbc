"""Word numbers, lists and exceptions for tables and sentences."""

from collections.abc import Sequence


def percent(share: float) -> str:
    """Format a share: `25 %`."""
    return f"{share:.0%}".replace("%", " %")


def count(number: int, noun: str) -> str:
    """Format a count: `1 step`, `2 steps`, `2 refreshes`."""
    return f"{number} {noun}" + ("" if number == 1 else "es" if noun.endswith("sh") else "s")


def listed(names: Sequence[str]) -> str:
    """Join names: `a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def described(error: BaseException) -> str:
    """Describe an exception of foreign code: `ValueError: no such file`.

    It may fail to say its text. Names of files that are not in UTF-8, which no log takes, are escaped.
    """
    try:
        text = str(error).encode(errors="backslashreplace").decode()
    except Exception as fault:
        text = f"its text cannot be had ({type(fault).__name__})"
    return f"{type(error).__name__}: {text}"
