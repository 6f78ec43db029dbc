"""Find the plugins of this environment by their entry points, without importing them."""

from importlib.metadata import EntryPoint, entry_points

REWARDS, BALANCES = "marble.rewards", "marble.balances"


def installed() -> dict[str, EntryPoint]:
    """Return the reward plugins by name."""
    return _entry_points_by_name(REWARDS)


def balances() -> dict[str, EntryPoint]:
    """Return the balance plugins by name."""
    return _entry_points_by_name(BALANCES)


def _entry_points_by_name(group: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in sorted(entry_points(group=group), key=lambda e: e.name)}
