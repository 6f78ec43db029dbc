"""Balances that do not look at the gradients: equal and fixed shares, and rewards mixed before the loss."""

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from marble_cli.balance.base import Solution, active_rewards, spread
from marble_cli.config.schema import Reduce


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


class Scalarisation(StrEnum):
    """What is mixed: raw rewards, or normalised advantages, as the functions of these names do."""

    weighted_sum = "weighted_sum"
    advantage_sum = "advantage_sum"


@dataclass(frozen=True)
class ScalarisedReward:
    """Rewards mixed into one before the loss: there is one gradient, and nothing left to balance.

    Attributes:
        kind: what is mixed.
        weights: of the K rewards.
        reduce: of `weighted_sum`: the sum over the rewards that apply to an image, or their mean.
    """

    kind: Scalarisation
    weights: tuple[float, ...]
    reduce: Reduce = Reduce.sum
