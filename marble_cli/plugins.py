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


def providers(plugin: str) -> list[str]:
    """Return the distributions that have a reward of this name, one for each code that they name."""
    found = {entry.value: entry for entry in _entry_points(REWARDS, _folders()) if entry.name == plugin}
    return sorted(f"{entry.dist.name} {entry.dist.version}" for entry in found.values() if entry.dist)


@cache
def _entry_points_by_name(group: str, folders: tuple[tuple[str, int], ...]) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in _entry_points(group, folders)}


@cache
def _entry_points(group: str, folders: tuple[tuple[str, int], ...]) -> list[EntryPoint]:
    """Read the entry points of `group`, once per state of the folders, as a composition asks eight times."""
    return sorted(entry_points(group=group), key=lambda entry: entry.name)


def _folders() -> tuple[tuple[str, int], ...]:
    """Return the folders of packages, each with the time of its last change."""
    return tuple((path, _changed(path)) for path in sys.path)


def _changed(path: str) -> int:
    try:
        return os.stat(path or ".").st_mtime_ns
    except OSError:
        return 0
