"""Results of the checks of a machine."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError


@dataclass(frozen=True)
class Finding:
    """Result of one check: its name, whether a run can use what was found, and what was found."""

    name: str
    ok: bool
    detail: str


def check(name: str, examine: Callable[[], str]) -> Finding:
    """Run a check that returns what it found; if it fails, the error becomes the finding."""
    try:
        return Finding(name, True, examine())
    except PackageNotFoundError:
        return Finding(name, False, f"not installed: pip install {name}")
    except Exception as error:  # whatever is wrong is to be reported
        return Finding(name, False, f"{type(error).__name__}: {error}")
