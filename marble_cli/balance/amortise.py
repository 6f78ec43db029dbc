"""Amortised steps: between refreshes, one backward pass that has the balanced direction as its gradient."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from marble_cli.balance.base import Solution


def amortised_coefficients(
    direction_weights: Tensor, optimality: Tensor, applicable: Tensor, *, shared_term: str = "inside"
) -> tuple[Tensor, Tensor]:
    """Mix K rewards into one loss whose gradient is exactly sum_k w_k g_k, because the loss is affine in r.

    p_i = sum_k w_k m_ki r_ki n / n_k and q_i = sum_k w_k m_ki (1 - r_ki) n / n_k.

    Args:
        direction_weights: [K] w_k.
        optimality: [K, n] r_ki; the value is ignored where not applicable.
        applicable: [K, n] bool m_ki.
        shared_term: "outside" gives sum_k w_k h_k + c instead: the weights scale the rewards' own parts only,
            and the shared term c enters once, over the images that some reward applies to.

    Returns:
        p and q, both [n] float64.

    Source: arXiv 2605.06507; the exact form for directions is this project's.
    """
    images = applicable.shape[1]
    share = applicable.double() * (images / applicable.double().sum(1).clamp(min=1))[:, None]
    share = share * direction_weights.to(share)[:, None]
    r = torch.where(applicable, optimality.double(), 0.5)
    if shared_term == "outside":
        scored = applicable.any(0)
        half = 0.5 * scored.double() * (images / scored.double().sum().clamp(min=1))
        tilt = (share * (r - 0.5)).sum(0)
        return half + tilt, half - tilt
    return (share * r).sum(0), (share * (1.0 - r)).sum(0)


def advantage_coefficients(
    alpha: Tensor, advantage: Tensor, applicable: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Mix the advantages by the balance's shares, as published; for comparison.

    r_i = clip(sum_k a_k A_ki / (2 A_max) + 1/2, 0, 1), p_i = r_i, q_i = 1 - r_i. Its gradient is not the balanced
    direction: shares found for unit gradients act on raw ones, and the n / n_k of the masks are lost.

    Args:
        alpha: [K] shares.
        advantage: [K, n], ignored where not applicable.
        applicable: [K, n] bool; an image that no reward applies to has r_i = 1/2, as published: it pulls the
            policy towards the behaviour policy.
        clip: A_max.

    Returns:
        p and q, both [n] float64.

    Source: the code published with arXiv 2605.06507.
    """
    mixed = (
        torch.where(applicable, advantage.double(), 0.0) * alpha.to(advantage.device).double()[:, None]
    ).sum(0)
    r = (mixed / (2.0 * clip) + 0.5).clamp(0.0, 1.0)
    return r, 1.0 - r


@dataclass(frozen=True)
class DirectionCache:
    """What amortised steps remember: smoothed shares `alpha` and gradient `norms`, both [K] float64.

    A norm of zero means that the reward was never active. `unit` tells whether the shares are of unit
    gradients.
    """

    alpha: Tensor | None = None
    norms: Tensor | None = None
    unit: bool = True

    def update(self, solution: Solution, norms: Tensor, ema: float) -> "DirectionCache":
        """Smooth a refresh into the cache: a <- ema a_cached + (1 - ema) a_new, and the norms alike.

        A reward that is not active has said nothing: its norm stays, and so does its share, up to an equal
        part for every silent reward; the active ones divide the rest. A refresh without any active reward
        changes nothing.

        Args:
            solution: of this refresh.
            norms: [K] norms of the raw gradients; ignored where not active.
            ema: weight of the past, in [0, 1).
        """
        active = solution.active
        if not active.any():
            return self
        seen = torch.where(active, norms.double().cpu(), 0.0)
        if self.alpha is None or self.norms is None:
            return DirectionCache(solution.alpha, seen, solution.unit)
        total, equal_part = self.alpha.sum(), 1.0 - active.double().mean()
        silent = torch.where(active, 0.0, self.alpha)
        held = (silent.sum() / total).clamp(0.0, 1.0) if total > 0.0 else total
        kept = torch.minimum(held, equal_part)
        silent = silent * (kept / held if held > 0.0 else held)
        target = torch.where(active, solution.alpha * (1.0 - kept), silent)
        known = torch.where(self.norms > 0.0, self.norms, seen)
        return DirectionCache(
            ema * self.alpha + (1.0 - ema) * target,
            ema * known + (1.0 - ema) * torch.where(active, seen, known),
            solution.unit,
        )

    def direction_weights(self) -> Tensor | None:
        """[K] float64 factors w_k of the raw gradients, a_k s / |g_k| where `unit`; None if empty."""
        if self.alpha is None or self.norms is None:
            return None
        seen = self.norms > 0.0
        if not self.unit:
            return self.alpha
        scale = self.norms[seen].mean()
        return torch.where(
            seen, self.alpha * scale / self.norms.where(seen, torch.ones_like(self.norms)), 0.0
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON; numbers keep all their digits."""
        return {
            "alpha": None if self.alpha is None else self.alpha.tolist(),
            "norms": None if self.norms is None else self.norms.tolist(),
            "unit": self.unit,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "DirectionCache":
        """The cache that `state_dict` described."""
        return cls(_tensor(state["alpha"]), _tensor(state["norms"]), bool(state["unit"]))


def _tensor(values: list[float] | None) -> Tensor | None:
    return None if values is None else torch.tensor(values, dtype=torch.float64)
