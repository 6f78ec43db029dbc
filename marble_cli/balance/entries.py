"""What enters the programme: rewards that stand alone, groups that speak with one voice, and their priorities."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from marble_cli.balance.base import ROUNDING
from marble_cli.balance.simplex import Array
from marble_cli.config import schema
from marble_cli.errors import ConfigError
from marble_cli.suggest import nearest


@dataclass(frozen=True)
class Entry:
    """One point of the programme: the mean of its `members`' gradients, numbers of rewards, divided by `priority`."""

    members: tuple[int, ...]
    priority: float = 1.0


def entries(config: schema.Balance, names: Sequence[str]) -> tuple[Entry, ...]:
    """The entries that `balance.groups` and `balance.priorities` ask for.

    Args:
        config: the `balance` group.
        names: the K rewards' names.

    Returns:
        Entries in the order of their first reward; none if both keys are empty, and every reward stands alone.

    Raises:
        ConfigError: a name is unknown, stands twice or for two things, or a group is empty.
    """
    if not config.groups and not config.priorities:
        return ()
    group_of = _group_of(config, names)
    known = [*config.groups, *(name for name in names if name not in group_of)]
    for name in config.priorities:
        if name in group_of:
            raise ConfigError(
                f"balance.priorities.{name}: {name} enters the balance with its group. Expected "
                f"balance.priorities.{group_of[name]}"
            )
        if name not in known:
            raise ConfigError(
                f"balance.priorities: there is no reward or group {name!r} in this run{nearest(name, known)}"
            )
    members: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        members.setdefault(group_of.get(name, name), []).append(index)
    return tuple(Entry(tuple(rows), config.priorities.get(name, 1.0)) for name, rows in members.items())


def _group_of(config: schema.Balance, names: Sequence[str]) -> dict[str, str]:
    """The group of every reward that is in one."""
    found: dict[str, str] = {}
    for group, rewards in config.groups.items():
        if group in names:
            raise ConfigError(f"balance.groups.{group}: a reward has this name. Expected another for the group")
        if not rewards:
            raise ConfigError(f"balance.groups.{group} is empty. Expected some of {', '.join(names)}")
        for name in rewards:
            if name not in names:
                raise ConfigError(
                    f"balance.groups.{group}: there is no reward {name!r} in this run{nearest(name, names)}"
                )
            if name in found:
                raise ConfigError(
                    f"balance.groups.{group}: {name} stands in {found[name]} already. Expected it once"
                )
            found[name] = group
    return found


def join(gram: Array, members: NDArray[np.bool_], unit: bool) -> tuple[Array, NDArray[np.bool_]]:
    """Combinations of the gradients that make one of every entry: their mean, scaled to unit length if `unit`.

    Args:
        gram: [K, K] of the gradients, of unit length if `unit`; all of them active.
        members: [E, K] which of them make up which entry.
        unit: the means too are to have unit length.

    Returns:
        [E', K] one row for every entry that has members and whose mean does not vanish, and [E] which those are.
    """
    count = members.sum(axis=1, keepdims=True)
    mean = members / np.maximum(count, 1)
    square = ((mean @ gram) * mean).sum(axis=1)
    stays: NDArray[np.bool_] = square > ROUNDING * (mean @ np.sqrt(gram.diagonal())) ** 2
    mean = mean[stays]
    return mean / np.sqrt(square[stays])[:, None] if unit else mean, stays
