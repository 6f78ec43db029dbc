"""Define a balance: a function from the Gram matrix of K reward gradients to an update direction."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

# A direction whose squared norm is below this share of its terms' magnitude is zero up to rounding.
ROUNDING = 1e-14


@dataclass(frozen=True)
class Solution:
    """Answer of a balance for one Gram matrix; the direction is sum_k weights_k g_k.

    Attributes:
        alpha: [K] float64 share of each reward; zero if it is not active.
        weights: [K] float64 factors of the raw gradients; zero for a reward that is not active.
        active: [K] bool; false for a gradient that is zero or not finite, which leaves the balance.
        gap: optimality gap of the QP on gradients scaled to at most unit length; NaN if no QP is solved.
        solver: name of the solver of the accepted solution; "none" if there was nothing to solve.
        fallbacks: number of solvers that were refused before.
        seconds: wall time of the solution.
        unit: true if alpha weighs unit gradients (weights = alpha s / norm) instead of the raw gradients.
        margins: [K] float64 margins of the guards, NaN for trained rewards; None without guards.
    """

    alpha: Tensor
    weights: Tensor
    active: Tensor
    gap: float
    solver: str
    fallbacks: int
    seconds: float
    unit: bool = False
    margins: Tensor | None = None


@runtime_checkable
class Balance(Protocol):
    """Turn the Gram matrix [K, K] float64 of the raw gradients into a `Solution`."""

    def __call__(self, gram: Tensor) -> Solution: ...


@runtime_checkable
class Stateful(Protocol):
    """Balance with answers that depend on earlier ones.

    Checkpoints hold its state, and a resumed run restores it: equal states give equal answers, to the bit.
    """

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return the state by name: finite tensors of any type and shape, on any device."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> object:
        """Replace the state by that of a `state_dict`, whose tensors are on the CPU.

        Raises:
            Exception: of any kind, if the state does not fit this balance.
        """
        ...


def active_rewards(gram: Tensor) -> Tensor:
    """Tell, as [K] bool, which gradients are finite and not zero; only these rewards enter the balance.

    Args:
        gram: [K, K] float64.
    """
    square = gram.diagonal()
    return torch.isfinite(square) & (square > torch.finfo(torch.float64).tiny)


def cosines(gram: Tensor, weights: Tensor) -> Tensor:
    """Compute the cosine of the direction sum_k weights_k g_k with every gradient.

    To compare K gradients with any other direction d, pass the Gram matrix of [g_1 .. g_K, d] and weights
    [0 .. 0, 1].

    Args:
        gram: [K, K] float64.
        weights: [K] float64, ignored for a gradient that is zero or not finite.

    Returns:
        [K] float64 in [-1, 1]; NaN for a gradient that is zero or not finite. All are zero if the direction
        is zero up to rounding.
    """
    matrix, factors = gram.detach().double().cpu().numpy(), weights.detach().double().cpu().numpy()
    active = active_rewards(gram).cpu().numpy()
    result = np.full(len(factors), np.nan)
    if active.any():
        raw = matrix[np.ix_(active, active)]
        norms = np.sqrt(raw.diagonal())
        terms = factors[active] * norms
        terms = terms / max(np.abs(terms).max(), np.finfo(np.float64).tiny)
        along = (raw / norms[:, None] / norms) @ terms
        square = terms @ along
        vanishes = square <= ROUNDING * np.abs(terms).sum() ** 2
        result[active] = 0.0 if vanishes else np.clip(along / np.sqrt(square), -1.0, 1.0)
    return torch.from_numpy(result)


def spread(values: Tensor, active: Tensor) -> Tensor:
    """Return [K] float64 with the `values` of the active rewards at their places, and zero elsewhere."""
    return torch.zeros(len(active), dtype=torch.float64).masked_scatter(active, values.double())
