"""The balance of MARBLE, and its relative without normalisation."""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from marble_cli.balance.base import Solution, active_rewards
from marble_cli.balance.groups import Entry, join
from marble_cli.balance.simplex import Array
from marble_cli.balance.solver import Optimum, least_norm
from marble_cli.balance.workspace import Workspace


@dataclass(frozen=True)
class LeastNorm:
    """The shortest convex combination of the rewards' gradients: it points against none of them.

    With `unit` gradients (MARBLE): minimise |sum_k a_k g_k/|g_k||^2 / 2 over sum a = 1, a >= floor; the
    direction is s sum_k a_k g_k/|g_k| with s the mean norm, so no reward gains a say by the scale of its
    gradient. Without: MGDA.

    With `entries`, which part the rewards, the mean of an entry's gradients (scaled to unit length if `unit`)
    takes the place of a reward's, the floor holds for entries, and the direction d favours them by priority:
    d . e_k / pi_k is least, and the same, for all that have a share (floor 0).

    `norm_priority` x multiplies an entry's priority by its members' mean |g_k| to the power x. Advantages have unit
    variance, so a gradient is long because it is noisy: few images speak for the reward. Unit gradients then hold
    less of the signal of such a reward; with x = 1 orthogonal gradients add up as they are, as in a sum of
    advantages, and the programme bends that sum where they conflict.

    Source: arXiv 2605.06507; MGDA: Desideri 2012, and arXiv 1810.04650.
    """

    unit: bool = True
    floor: float = 0.0
    solver: str = "osqp"
    entries: tuple[Entry, ...] = ()
    norm_priority: float = 0.0
    _workspace: Workspace = field(default_factory=Workspace, init=False, repr=False, compare=False)

    def __call__(self, gram: Tensor) -> Solution:
        """Solve the balance.

        Args:
            gram: [K, K] of the raw gradients; rewards whose gradient is zero or not finite are left out, and so
                are those of an entry whose mean vanishes.

        Returns:
            A solution whose gap is at most 1e-10; all zero if no reward is active.

        Raises:
            BalanceError: no solver reached that gap.
        """
        gram = gram.detach().double().cpu()
        active = active_rewards(gram).numpy()
        raw = gram.numpy()[np.ix_(active, active)]
        norms = np.sqrt(raw.diagonal())
        vectors = raw / norms[:, None] / norms if self.unit else raw
        members = self._members(len(gram))[:, active]
        points, combinations, stays = join(vectors, members, self.unit)
        heard = combinations.any(axis=0)
        active[active] = heard
        if not heard.any():
            return self._solution(active, np.zeros(0), np.zeros(0), Optimum(np.zeros(0), 0.0, "none", 0, 0.0))
        priorities = self._priorities(norms, members)[stays]
        optimum = least_norm(points, self.floor, self.solver, priorities, self._workspace)
        shares = (optimum.alpha @ combinations)[heard]
        shares /= shares.sum()
        weights = shares * norms[heard].mean() / norms[heard] if self.unit else shares
        return self._solution(active, shares, weights, optimum)

    def _solution(
        self, active: NDArray[np.bool_], shares: Array, weights: Array, optimum: Optimum
    ) -> Solution:
        """The optimum told in all K rewards, of which the active ones have `shares` and `weights`."""
        alpha, factors = np.zeros(len(active)), np.zeros(len(active))
        alpha[active], factors[active] = shares, weights
        return Solution(
            torch.from_numpy(alpha),
            torch.from_numpy(factors),
            torch.from_numpy(active),
            optimum.gap,
            optimum.solver,
            optimum.fallbacks,
            optimum.seconds,
            self.unit,
        )

    def _priorities(self, norms: Array, members: NDArray[np.bool_]) -> Array:
        """[E] of the entries, whose `members` [E, K] have gradients of these `norms` [K]."""
        own = np.array([entry.priority for entry in self.entries]) if self.entries else np.ones(len(members))
        mean = (members @ norms) / np.maximum(members.sum(axis=1), 1)
        tilted: Array = own * (np.where(mean > 0.0, mean, 1.0) / norms.max()) ** self.norm_priority
        return tilted

    def _members(self, rewards: int) -> NDArray[np.bool_]:
        """[E, K] which rewards make up which entry."""
        if not self.entries:
            return np.eye(rewards, dtype=np.bool_)
        members = np.zeros((len(self.entries), rewards), dtype=np.bool_)
        for row, entry in zip(members, self.entries, strict=True):
            row[list(entry.members)] = True
        return members
