"""Choose the steps that refresh: regular ones, or those at which the cached shares are stale."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from marble_cli.balance.base import Balance
from marble_cli.balance.cache import DirectionCache
from marble_cli.config.counts import is_refresh
from marble_cli.distributed.ranks import Ranks
from marble_cli.step.decision import Decision
from marble_cli.step.staleness import measure_staleness


@dataclass(frozen=True)
class Schedule:
    """Choose the steps that refresh.

    Attributes:
        every: steps from one refresh to the next, the first step being one.
        warmup: steps at the start that all refresh.
        needs_cache: a step without cached weights refreshes, too.
        paced: the cache knows the step that refreshes next.
    """

    every: int
    warmup: int
    needs_cache: bool
    paced: bool = False

    def refreshes(self, step: int, cache: DirectionCache) -> bool:
        """Tell whether `step` (1-based) takes every reward's gradient apart."""
        if self.needs_cache and cache.alpha is None:
            return True
        if self.paced:
            return step <= self.warmup or step >= cache.due
        return is_refresh(step, self.every, self.warmup)


@dataclass(frozen=True)
class Pace:
    """Set the step of the next refresh by the staleness that this one found.

    Attributes:
        balance: of the run; it must keep no state.
        longest: interval between two refreshes.
        warmup: steps at the start that all refresh, from which a longer interval cannot be judged.
        ranks: which refresh at the same steps.
    """

    balance: Balance
    longest: int
    warmup: int
    ranks: Ranks

    def schedule(
        self, step: int, halves: Tensor, decision: Decision, cache: DirectionCache
    ) -> tuple[DirectionCache, dict[str, float]]:
        """Return the cache of `decision` with the step that refreshes next, and metrics.

        Args:
            step: number of this refresh.
            halves: [2 K, 2 K] float64 Gram matrix of the gradients of `in_halves`.
            decision: of this refresh.
            cache: from before this refresh.
        """
        found = measure_staleness(self.balance, halves, cache, self.ranks)
        interval = cache.interval
        if found and step > self.warmup:
            interval = found.next_interval(interval, self.longest)
        # Processors may round a comparison to different sides; all ranks take the main rank's.
        interval = int(self.ranks.broadcast(torch.tensor(interval)).item())
        metrics = {"balance/refresh_interval": float(interval)}
        if found:
            metrics |= {"balance/staleness": found.change, "balance/staleness_noise": found.noise}
        return replace(decision.cache, interval=interval, due=step + interval), metrics
