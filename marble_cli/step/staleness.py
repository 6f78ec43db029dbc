"""Decide from data how long a refresh's shares are cached.

A refresh finds other shares than the one before, partly because the gradients changed, partly because both
come from a sample of images. Two halves of one refresh's images tell the second part: their gradients were
taken at the same weights, so the shares that they give differ by noise alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from marble_cli.balance.base import Balance, active_rewards
from marble_cli.balance.cache import DirectionCache
from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import BalanceError
from marble_cli.objective.coefficients import Coefficients
from marble_cli.step.alike import solve_once


def in_halves(losses: Coefficients, groups: Tensor) -> Coefficients:
    """Split each of R losses into those of two halves of the images, by prompt.

    Args:
        losses: [R, n].
        groups: [n] int64, the prompt of each image.

    Returns:
        [2 R, n]: the R losses over the images of prompts with an even number, then those of the others. Row r
        and row R + r add up to loss r, and so do their gradients.
    """
    even = (groups % 2 == 0).double()
    p = torch.cat([losses.p * even, losses.p * (1 - even)])
    q = torch.cat([losses.q * even, losses.q * (1 - even)])
    return Coefficients(p, q)


@dataclass(frozen=True)
class Staleness:
    """Squared distances of shares.

    Cached shares come from more images than half of a step's. So, in the mean, the change is at
    most the noise unless the gradients changed.

    Attributes:
        change: from the cached shares to those of half of the images, the mean of both halves.
        noise: between the shares of both halves.
    """

    change: float
    noise: float

    def next_interval(self, interval: int, longest: int) -> int:
        """Return the steps to the next refresh: half of `interval` if the cache is stale, else its double."""
        return max(1, interval // 2) if self.change > self.noise else min(longest, 2 * interval)


def fold(halves: Tensor) -> Tensor:
    """Return the Gram matrix [K, K] of gradients whose halves have the Gram matrix `halves` [2 K, 2 K]."""
    count = len(halves) // 2
    one, other = halves[:count, :count], halves[count:, count:]
    return one + other + halves[:count, count:] + halves[count:, :count]


def measure_staleness(
    balance: Balance, halves: Tensor, cache: DirectionCache, ranks: Ranks
) -> Staleness | None:
    """Compare the two halves of a refresh with the cache and with each other.

    Returns None if nothing is cached, if fewer than two rewards have a gradient, if only one half has one of
    some reward, or if a QP fails.

    Args:
        balance: of the run; it must keep no state.
        halves: [2 K, 2 K] float64 Gram matrix of the gradients of `in_halves`.
        cache: of the refreshes before.
        ranks: which all get the main rank's answer.
    """
    count = len(halves) // 2
    both, active = (halves[:count, :count], halves[count:, count:]), active_rewards(fold(halves))
    if cache.alpha is None or active.sum() < 2:  # the share of one is always 1
        return None
    if not all(active_rewards(half)[active].all() for half in both):
        return None
    try:
        one, other = (_normalised(solve_once(balance, half, ranks).alpha) for half in both)
    except BalanceError:
        return None
    cached = _normalised(torch.where(active, cache.alpha, 0.0))
    change = ((cached - one).square().sum() + (cached - other).square().sum()) / 2
    return Staleness(change.item(), (one - other).square().sum().item())


def _normalised(shares: Tensor) -> Tensor:
    """Scale shares so that their absolute values add up to 1; some balances weigh by more or less."""
    return shares / shares.abs().sum().clamp(min=torch.finfo(torch.float64).tiny)
