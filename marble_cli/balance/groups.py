"""Group rewards for the balance: each group enters the QP as one point, with one priority.

A reward outside `balance.groups` is a group of its own.
"""

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
class RewardGroup:
    """Rewards that enter the QP as one point: the mean of their gradients, divided by `priority`.

    Attributes:
        members: indices of the rewards.
        priority: pi of the group; only the ratios of priorities matter.
    """

    members: tuple[int, ...]
    priority: float = 1.0


def make_groups(config: schema.BalanceConfig, names: Sequence[str]) -> tuple[RewardGroup, ...]:
    """Read `balance.groups` and `balance.priorities`.

    Args:
        config: the `balance` group of the configuration.
        names: the K rewards' names.

    Returns:
        Groups that partition the rewards, in the order of their first reward. Empty if both keys are empty,
        as every reward is then a group of its own.

    Raises:
        ConfigError: a name is unknown, in two groups or used for a reward and a group, or a group is empty.
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
    return tuple(RewardGroup(tuple(rows), config.priorities.get(name, 1.0)) for name, rows in members.items())


def _group_of(config: schema.BalanceConfig, names: Sequence[str]) -> dict[str, str]:
    """Map every reward in `balance.groups` to its group."""
    group_of: dict[str, str] = {}
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
            if name in group_of:
                raise ConfigError(
                    f"balance.groups.{group}: {name} is in {group_of[name]} already. Expected it once."
                )
            group_of[name] = group
    return group_of


def join(gram: Array, members: NDArray[np.bool_], unit: bool) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Make one vector of every group: the mean of its members' gradients, scaled to unit length if `unit`.

    Groups without a member and groups whose mean vanishes are dropped, which leaves E' of the E groups.

    Args:
        gram: [K, K] of the gradients, of unit length if `unit`; all of them active.
        members: [E, K] which of them make up which group.
        unit: scale the means to unit length.

    Returns:
        The Gram matrix [E', E'] of the vectors, their combinations [E', K] of the gradients, and [E] bool,
        true for the groups that are left.
    """
    count = members.sum(axis=1)
    mean = members / np.maximum(count, 1)[:, None]
    if (count <= 1).all():
        mean = mean[count == 1]
        return mean @ gram @ mean.T, mean, count == 1
    vectors = mean @ _coordinates(gram)
    length = np.linalg.norm(vectors, axis=1)
    kept: NDArray[np.bool_] = length > np.sqrt(ROUNDING) * (mean @ np.sqrt(gram.diagonal()))
    vectors, mean, length = vectors[kept], mean[kept], length[kept, None]
    if unit:
        vectors, mean = vectors / length, mean / length
    return vectors @ vectors.T, mean, kept


def _coordinates(gram: Array) -> Array:
    """Return [K, K] rows with these inner products.

    Means of rows have a valid Gram matrix, to the last digit, even if the rows nearly cancel. Sums over the
    entries of `gram` would not.
    """
    length = np.sqrt(gram.diagonal())
    square, axes = np.linalg.eigh(gram / length[:, None] / length)
    rows: Array = axes * np.sqrt(np.maximum(square, 0.0)) * length[:, None]
    return rows
