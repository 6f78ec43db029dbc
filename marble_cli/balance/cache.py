"""Remember the shares and gradient norms of past refreshes, for the amortised steps."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from marble_cli.balance.base import Solution

ROUNDING = 1e-9  # of a sum of shares


@dataclass(frozen=True)
class DirectionCache:
    """Shares and gradient norms, smoothed over refreshes, from which amortised steps take their weights.

    Attributes:
        alpha: [K] float64 shares; None before the first refresh.
        norms: [K] float64, zero for a reward that was never active; None before the first refresh.
        unit: true if the shares weigh unit gradients.
        guards: [K] bool; None without guards, whose shares come on top of those of the trained rewards.
        interval: steps that the shares are cached for, if that is decided from data.
        due: the step that refreshes next, if that is decided from data.
    """

    alpha: Tensor | None = None
    norms: Tensor | None = None
    unit: bool = True
    interval: int = 1
    due: int = 1
    guards: Tensor | None = None

    def update(self, solution: Solution, norms: Tensor, ema: float) -> "DirectionCache":
        """Smooth a refresh into the cache: a <- ema a_cached + (1 - ema) a_new, and the norms alike.

        A reward that is not active keeps its norm. It also keeps its share, as long as all inactive rewards
        together hold no more than their number over K; the active rewards divide the rest. A refresh without
        an active reward changes nothing. All this counts trained rewards; a guard that is not active keeps
        its share.

        Some shares hold a direction back from pushing a reward down: those of guards, and those of a balance
        that adds up to more than 1, as the multipliers of `upgrad` do. Without every trained reward that ever
        had a gradient, a refresh does not see what they protect, or protect from, so it raises them only.

        Args:
            solution: of this refresh.
            norms: [K] norms of the raw gradients; ignored for rewards that are not active.
            ema: weight of the past, in [0, 1).
        """
        active = solution.active
        guards = None if solution.margins is None else ~solution.margins.isnan()
        trained = torch.ones_like(active) if guards is None else ~guards
        if not active[trained].any():
            return self
        seen = torch.where(active, norms.double().cpu(), 0.0)
        if self.alpha is None or self.norms is None:
            return replace(self, alpha=solution.alpha, norms=seen, unit=solution.unit, guards=guards)
        total, equal_part = self.alpha[trained].sum(), 1.0 - active[trained].double().mean()
        inactive = torch.where(active | ~trained, 0.0, self.alpha)
        held = (inactive.sum() / total).clamp(0.0, 1.0) if total > 0.0 else total
        kept = torch.minimum(held, equal_part)
        inactive = inactive * (kept / held if held > 0.0 else held)
        inactive = torch.where(trained, inactive, self.alpha)
        target = torch.where(active, solution.alpha * (1.0 - kept), inactive)
        if (trained & ~active & (self.norms > 0.0)).any():
            protects = ~trained | (total > 1.0 + ROUNDING)
            target = torch.where(protects, target.maximum(self.alpha), target)
        known = torch.where(self.norms > 0.0, self.norms, seen)
        return replace(
            self,
            alpha=ema * self.alpha + (1.0 - ema) * target,
            norms=ema * known + (1.0 - ema) * torch.where(active, seen, known),
            unit=solution.unit,
            guards=guards,
        )

    def direction_weights(self) -> Tensor | None:
        """Return [K] float64 factors w_k of the raw gradients, a_k s / |g_k| if `unit`; None if empty.

        s is the mean norm of the trained rewards.
        """
        if self.alpha is None or self.norms is None:
            return None
        seen = self.norms > 0.0
        if not self.unit:
            return self.alpha
        scale = self.norms[seen if self.guards is None else seen & ~self.guards].mean()
        return torch.where(
            seen, self.alpha * scale / self.norms.where(seen, torch.ones_like(self.norms)), 0.0
        )

    def state_dict(self) -> dict[str, Any]:
        """Return plain lists for JSON; numbers keep all their digits."""
        return {
            "alpha": None if self.alpha is None else self.alpha.tolist(),
            "norms": None if self.norms is None else self.norms.tolist(),
            "unit": self.unit,
            "interval": self.interval,
            "due": self.due,
            "guards": None if self.guards is None else self.guards.tolist(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "DirectionCache":
        """Restore the cache of a `state_dict`; that of an older release refreshes at once."""
        alpha, norms = _tensor(state["alpha"]), _tensor(state["norms"])
        guards = None if state.get("guards") is None else torch.tensor(state["guards"])
        return cls(alpha, norms, bool(state["unit"]), state.get("interval", 1), state.get("due", 1), guards)


def _tensor(values: list[float] | None) -> Tensor | None:
    return None if values is None else torch.tensor(values, dtype=torch.float64)
