"""A small step in float64, and the gradients of its losses by autograd."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from marble_cli.config.enums import SharedTerm
from marble_cli.objective.advantages import optimality
from marble_cli.objective.coefficients import (
    Coefficients,
    RewardCoefficients,
    reward_coefficients,
)
from marble_cli.objective.nft import mixed_loss, nft_terms

CLIP, BETA = 1.5, 0.2


@dataclass(frozen=True)
class Step:
    """A small step in float64: two times per image, uneven groups, masks, some advantages clipped."""

    net: nn.Module
    x0: Tensor
    xt: Tensor
    t: Tensor
    v_old: Tensor
    applicable: Tensor
    advantage: Tensor

    @property
    def r(self) -> Tensor:
        return optimality(self.advantage, CLIP)

    @property
    def count(self) -> int:
        return len(self.x0)

    def velocity(self, rows: slice = slice(None)) -> Tensor:
        features = torch.cat([self.xt[rows].flatten(1), self.t[rows, None]], dim=1)
        velocity: Tensor = self.net(features)
        return velocity.view_as(self.x0[rows])

    def coefficients(self, shared_term: str = "inside") -> RewardCoefficients:
        return reward_coefficients(self.r, self.applicable, shared_term=SharedTerm(shared_term))

    def gradient(self, mixture: Coefficients, micro_batches: int = 1) -> Tensor:
        """Return the flat gradient of the mixed loss; coefficients are [n], and each image has two times."""
        self.net.zero_grad()
        p, q = mixture.p.repeat_interleave(2), mixture.q.repeat_interleave(2)
        edges = torch.linspace(0, self.count, micro_batches + 1).long().tolist()
        for start, stop in pairwise(edges):
            rows = slice(start, stop)
            terms = nft_terms(
                self.x0[rows],
                self.xt[rows],
                self.t[rows],
                self.velocity(rows),
                self.v_old[rows],
                beta=BETA,
            )
            mixed_loss(terms, p[rows], q[rows], clip=CLIP, beta=BETA, count=self.count).backward()
        return torch.cat([z.grad.flatten() for z in self.net.parameters() if z.grad is not None])


def reward_gradients(step: Step, shared_term: str = "inside") -> Tensor:
    return rows(step, step.coefficients(shared_term).rewards)


def rows(step: Step, rewards: Coefficients) -> Tensor:
    """[K, P]: the gradient of every reward's own loss."""
    return torch.stack([step.gradient(Coefficients(p, q)) for p, q in zip(rewards.p, rewards.q, strict=True)])


def relative(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()
