"""The direction cache: what amortised steps take over from the last refreshes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from marble_cli.balance.base import Solution


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
