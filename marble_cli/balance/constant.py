"""Balances that do not look at the gradients: equal and fixed shares, and rewards mixed before the loss."""

from dataclasses import dataclass

import torch
from torch import Tensor

from marble_cli.balance.base import Solution, active_rewards, spread


@dataclass(frozen=True)
class Fixed:
    """Constant shares: the direction is sum_k a_k g_k, a_k proportional to `shares` over the active k."""

    shares: tuple[float, ...]

    def __call__(self, gram: Tensor) -> Solution:
        """Share out the step among the rewards whose gradient is neither zero nor non-finite."""
        gram = gram.double().cpu()
        active = active_rewards(gram)
        shares = torch.tensor(self.shares, dtype=torch.float64)[active]
        alpha = spread(shares / shares.sum() if shares.any() else shares, active)
        return Solution(alpha, alpha, active, float("nan"), "none", 0, 0.0)


@dataclass(frozen=True)
class Mixture:
    """Rewards mixed into one before the loss; there is one gradient, and nothing left to balance.

    `kind` names what is mixed: "weighted_sum" the raw rewards, "advantage_sum" the normalised advantages, as
    the functions of these names in `marble_cli.advantages` do; `weights` are their weights, and `reduce` is that
    of `weighted_sum`.
    """

    kind: str
    weights: tuple[float, ...]
    reduce: str = "sum"
