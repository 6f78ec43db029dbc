"""Balance by the nearest point to the origin: MARBLE, and MGDA, which is the same without unit gradients.

`LeastNorm` goes from a Gram matrix to a `Solution` in four steps. `active_rewards` drops gradients that are
zero or not finite. `groups.join` makes one vector of every group of rewards. `solver.least_norm` solves the
QP over these vectors and certifies its optimum. What it returns is shares of groups, which this file turns
into shares and weights of rewards.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from marble_cli.balance.base import Solution, active_rewards
from marble_cli.balance.groups import RewardGroup, join
from marble_cli.balance.simplex import Array
from marble_cli.balance.solver import Optimum, least_norm
from marble_cli.balance.workspace import Workspace


@dataclass(frozen=True)
class LeastNorm:
    """Find the shortest convex combination of the gradients, which points against none of them.

    With `unit` gradients (MARBLE): minimise |sum_k a_k g_k/|g_k||^2 / 2 over sum a = 1, a >= floor. The
    direction is s sum_k a_k g_k/|g_k| with s the mean norm, so no reward gains weight by the scale of its
    gradient. Without `unit`: MGDA.

    With `groups`, which partition the rewards, the mean of a group's gradients (scaled to unit length if
    `unit`) replaces a reward's gradient, and the floor holds for groups. The direction d favours groups by
    priority: d . e_k / pi_k is least, and equal, for all groups k with a share (floor 0), e_k being the
    group's vector.

    `norm_priority` x multiplies a group's priority by its members' mean |g_k| to the power x. Advantages have
    unit variance, so a gradient is long because it is noisy: few images speak for the reward. Unit gradients
    then hold less of the signal of such a reward. With x = 1 orthogonal gradients add up as they are, as in a
    sum of advantages, and the QP bends that sum where they conflict.

    Source: arXiv 2605.06507; MGDA: Desideri 2012, and arXiv 1810.04650.
    """

    unit: bool = True
    floor: float = 0.0
    solver: str = "osqp"
    groups: tuple[RewardGroup, ...] = ()
    norm_priority: float = 0.0
    _workspace: Workspace = field(default_factory=Workspace, init=False, repr=False, compare=False)

    def __call__(self, gram: Tensor) -> Solution:
        """Solve the balance.

        Args:
            gram: [K, K] of the raw gradients. Rewards whose gradient is zero or not finite are left out, and
                so are those of a group whose mean vanishes.

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
        points, combinations, kept_groups = join(vectors, members, self.unit)
        kept = combinations.any(axis=0)
        active[active] = kept
        if not kept.any():
            return self._solution(active, np.zeros(0), np.zeros(0), Optimum(np.zeros(0), 0.0, "none", 0, 0.0))
        priorities = self._priorities(norms, members)[kept_groups]
        optimum = least_norm(points, self.floor, self.solver, priorities, self._workspace)
        shares = (optimum.alpha @ combinations)[kept]
        shares /= shares.sum()
        weights = shares * norms[kept].mean() / norms[kept] if self.unit else shares
        return self._solution(active, shares, weights, optimum)

    def _solution(
        self, active: NDArray[np.bool_], shares: Array, weights: Array, optimum: Optimum
    ) -> Solution:
        """Return the solution for all K rewards; `shares` and `weights` are of the active ones."""
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
        """Return [E] priorities of the groups with these `members` [E, K], given the rewards' `norms` [K]."""
        own = np.array([group.priority for group in self.groups]) if self.groups else np.ones(len(members))
        mean = (members @ norms) / np.maximum(members.sum(axis=1), 1)
        priorities: Array = own * (np.where(mean > 0.0, mean, 1.0) / norms.max()) ** self.norm_priority
        return priorities

    def _members(self, rewards: int) -> NDArray[np.bool_]:
        """Return [E, K] bool, which rewards make up which group."""
        if not self.groups:
            return np.eye(rewards, dtype=np.bool_)
        members = np.zeros((len(self.groups), rewards), dtype=np.bool_)
        for row, group in zip(members, self.groups, strict=True):
            row[list(group.members)] = True
        return members
