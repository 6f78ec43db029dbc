"""Classifier-free guidance of a velocity, in rollouts and of the KL term's reference."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from marble_cli.policy.families.guidance import bound_norm

Velocity = Callable[[Tensor, Tensor], Tensor]  # (xt [B, C, H, W], t [B]) -> velocity [B, C, H, W]
Rule = Callable[[Tensor, Tensor, float], Tensor]  # a policy's `guided`


@dataclass(frozen=True)
class Guidance:
    """How the velocities of the prompt and of the negative prompt are combined.

    Attributes:
        scale: with the meaning it has in the family's pipeline; 0 and 1 mean no guidance.
        normalization: bound on each sample's norm, in multiples of the prompt's velocity's norm; 0: none.
        truncation: times with 1 - t above this have no guidance.

    Source: Ho and Salimans, arXiv 2207.12598; the last two as in diffusers' `ZImagePipeline`.
    """

    scale: float
    normalization: float = 0.0
    truncation: float = 1.0

    @property
    def acts(self) -> bool:
        """Whether the scale enables guidance."""
        return self.scale > 1

    def combine(self, positive: Tensor, negative: Tensor, t: Tensor, rule: Rule) -> Tensor:
        """Return the guided velocity [B, C, H, W].

        Args:
            positive: [B, C, H, W], the velocity of the prompt.
            negative: [B, C, H, W], the velocity of the negative prompt.
            t: [B] times.
            rule: the policy's `guided`, which combines the two as its family does.
        """
        guided = rule(positive, negative, self.scale)
        if self.normalization > 0:
            guided = bound_norm(guided, positive, self.normalization)
        if self.truncation == 1:
            return guided
        return torch.where(self._ends(t).view(-1, *[1] * (guided.ndim - 1)), positive, guided)

    def guide(self, positive: Velocity, negative: Velocity, rule: Rule) -> Velocity:
        """Return a guided velocity, without a pass for the negative prompt where no time has guidance."""

        def velocity(xt: Tensor, t: Tensor) -> Tensor:
            unguided = positive(xt, t)
            if self.truncation < 1 and bool(self._ends(t).all()):
                return unguided
            return self.combine(unguided, negative(xt, t), t, rule)

        return velocity

    def _ends(self, t: Tensor) -> Tensor:
        """Return [B] bool, true for times without guidance."""
        return 1 - t > self.truncation
