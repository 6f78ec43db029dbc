"""Balance without the gradients: by equal or fixed shares, or by mixing rewards before the loss."""

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from marble_cli.balance.base import Solution, active_rewards, spread
from marble_cli.balance.guards import Guarded, Guards
from marble_cli.config.enums import Reduce


@dataclass(frozen=True)
class Fixed:
    """Weigh gradients by constant shares: sum_k a_k g_k, a_k proportional to `shares` over the active k."""

    shares: tuple[float, ...]

    def __call__(self, gram: Tensor) -> Solution:
        """Divide the step among the rewards whose gradient is finite and not zero."""
        gram = gram.double().cpu()
        active = active_rewards(gram)
        shares = torch.tensor(self.shares, dtype=torch.float64)[active]
        alpha = spread(shares / shares.sum() if shares.any() else shares, active)
        return Solution(alpha, alpha, active, float("nan"), "none", 0, 0.0)


class Scalarisation(StrEnum):
    """Mix raw rewards, or normalised advantages, by the function of `objective.advantages` of this name."""

    weighted_sum = "weighted_sum"
    advantage_sum = "advantage_sum"


@dataclass(frozen=True)
class ScalarisedReward:
    """Mix rewards into one before the loss, which leaves one gradient and nothing to balance.

    Attributes:
        kind: how they are mixed.
        weights: of the trained rewards.
        reduce: for `weighted_sum`, the sum over the rewards that apply to an image, or their mean.
        guards: of the K rewards; None if all are trained.
    """

    kind: Scalarisation
    weights: tuple[float, ...]
    reduce: Reduce = Reduce.sum
    guards: Guards | None = None

    def guarded(self) -> Guarded | None:
        """Return the balance of the K rewards' gradients and, last, the mixture's; None without guards."""
        if self.guards is None:
            return None
        return Guarded(Fixed((*(0.0 for _ in self.weights), 1.0)), self.guards.with_mixture())
