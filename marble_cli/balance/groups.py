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


def entries(config: schema.BalanceConfig, names: Sequence[str]) -> tuple[Entry, ...]:
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
                f"balance.priorities.{group_of[name]}."
            )
        if name not in known:
            raise ConfigError(
                f"balance.priorities: there is no reward or group {name!r} in this run{nearest(name, known)}"
            )
    members: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        members.setdefault(group_of.get(name, name), []).append(index)
    return tuple(Entry(tuple(rows), config.priorities.get(name, 1.0)) for name, rows in members.items())


def _group_of(config: schema.BalanceConfig, names: Sequence[str]) -> dict[str, str]:
    """The group of every reward that is in one."""
    found: dict[str, str] = {}
    for group, rewards in config.groups.items():
        if group in names:
            raise ConfigError(
                f"balance.groups.{group}: a reward has this name. Expected another for the group."
            )
        if not rewards:
            raise ConfigError(f"balance.groups.{group} is empty. Expected some of {', '.join(names)}.")
        for name in rewards:
            if name not in names:
                raise ConfigError(
                    f"balance.groups.{group}: there is no reward {name!r} in this run{nearest(name, names)}"
                )
            if name in found:
                raise ConfigError(
                    f"balance.groups.{group}: {name} stands in {found[name]} already. Expected it once."
                )
            found[name] = group
    return found


def join(gram: Array, members: NDArray[np.bool_], unit: bool) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Make one vector of every entry: the mean of its members' gradients, scaled to unit length if `unit`.

    Args:
        gram: [K, K] of the gradients, of unit length if `unit`; all of them active.
        members: [E, K] which of them make up which entry.
        unit: the means too are to have unit length.

    Returns:
        The Gram matrix [E', E'] of those entries that have members and whose mean does not vanish, their
        combinations [E', K] of the gradients, and [E] which entries they are.
    """
    count = members.sum(axis=1)
    mean = members / np.maximum(count, 1)[:, None]
    if (count <= 1).all():
        mean = mean[count == 1]
        return mean @ gram @ mean.T, mean, count == 1
    vectors = mean @ _coordinates(gram)
    length = np.linalg.norm(vectors, axis=1)
    stays: NDArray[np.bool_] = length > np.sqrt(ROUNDING) * (mean @ np.sqrt(gram.diagonal()))
    vectors, mean, length = vectors[stays], mean[stays], length[stays, None]
    if unit:
        vectors, mean = vectors / length, mean / length
    return vectors @ vectors.T, mean, stays


def _coordinates(gram: Array) -> Array:
    """[K, K] rows with these inner products.

    Means of rows have a Gram matrix that is one to the last digit even where they nearly cancel; sums of its
    entries would not.
    """
    length = np.sqrt(gram.diagonal())
    square, axes = np.linalg.eigh(gram / length[:, None] / length)
    rows: Array = axes * np.sqrt(np.maximum(square, 0.0)) * length[:, None]
    return rows
