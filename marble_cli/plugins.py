"""Find the plugins of this environment by their entry points, without importing them."""

import os
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points

REWARDS, BALANCES, TRACKERS = "marble.rewards", "marble.balances", "marble.trackers"


def installed() -> dict[str, EntryPoint]:
    """Return the reward plugins by name."""
    return dict(_entry_points_by_name(REWARDS, _folders()))


def balances() -> dict[str, EntryPoint]:
    """Return the balance plugins by name."""
    return dict(_entry_points_by_name(BALANCES, _folders()))


def trackers() -> dict[str, EntryPoint]:
    """Return the trackers by name."""
    return dict(_entry_points_by_name(TRACKERS, _folders()))


@cache
def _entry_points_by_name(group: str, folders: tuple[tuple[str, int], ...]) -> dict[str, EntryPoint]:
    """Read the entry points of `group`, once per state of the folders, as a composition asks eight times."""
    return {entry.name: entry for entry in sorted(entry_points(group=group), key=lambda e: e.name)}


def _folders() -> tuple[tuple[str, int], ...]:
    """Return the folders of packages, each with the time of its last change."""
    return tuple((path, _changed(path)) for path in sys.path)


def _changed(path: str) -> int:
    try:
        return os.stat(path or ".").st_mtime_ns
    except OSError:
        return 0
