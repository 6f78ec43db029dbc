"""What a balance is: a function from the Gram matrix of K reward gradients to an update direction."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

# Below this share of its terms' magnitude, the square of a direction's norm is rounding and the direction
# zero.
ROUNDING = 1e-14


@dataclass(frozen=True)
class Solution:
    """A balance's answer for one Gram matrix; the direction is sum_k weights_k g_k.

    Attributes:
        alpha: [K] float64 share of each reward; zero for one that is not active.
        weights: [K] float64 factors of the raw gradients; zero for one that is not active.
        active: [K] bool; false where the gradient is zero or not finite, so the reward has no say.
        gap: optimality gap of the quadratic programme on gradients scaled to at most unit length; NaN where
            no programme is solved.
        solver: who found the accepted solution; "none" where there was nothing to solve.
        fallbacks: how many solvers were refused before it.
        seconds: wall time of the solution.
        unit: alpha weighs unit gradients (weights = alpha s / norm) rather than the gradients themselves.
    """

    alpha: Tensor
    weights: Tensor
    active: Tensor
    gap: float
    solver: str
    fallbacks: int
    seconds: float
    unit: bool = False


@runtime_checkable
class Balance(Protocol):
    """Anything that turns the Gram matrix [K, K] float64 of the raw gradients into a `Solution`."""

    def __call__(self, gram: Tensor) -> Solution: ...


@runtime_checkable
class Stateful(Protocol):
    """A balance whose answers depend on earlier ones.

    Checkpoints hold its state, and a resumed run puts it back: equal states give equal answers, to the bit.
    """

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return what is remembered, by name: finite tensors of any type and shape, on any device."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> object:
        """Replace what is remembered by a `state_dict`, whose tensors are on the CPU.

        Raises:
            Exception: of any kind, if the state is not of this balance.
        """
        ...


def active_rewards(gram: Tensor) -> Tensor:
    """[K] bool: the gradient is finite and not zero, so the reward takes part.

    Args:
        gram: [K, K] float64.
    """
    square = gram.diagonal()
    return torch.isfinite(square) & (square > torch.finfo(torch.float64).tiny)


def cosines(gram: Tensor, weights: Tensor) -> Tensor:
    """Cosine of the direction sum_k weights_k g_k with every gradient.

    Pass the Gram matrix of [g_1 .. g_K, d] and weights [0 .. 0, 1] to compare K gradients with any other
    direction.

    Args:
        gram: [K, K] float64.
        weights: [K] float64, ignored where the gradient is zero or not finite.

    Returns:
        [K] float64 in [-1, 1]; NaN for a gradient that is zero or not finite; zero all over where the
        direction vanishes as far as rounding can tell.
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
    """[K] float64: `values` of the active rewards in their places, zero elsewhere."""
    return torch.zeros(len(active), dtype=torch.float64).masked_scatter(active, values.double())
