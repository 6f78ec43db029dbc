"""The balance of MARBLE, and its relative without normalisation."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from marble_cli.balance.base import Solution, active_rewards, cosines, spread
from marble_cli.balance.gram import normalise
from marble_cli.balance.solver import least_norm


@dataclass(frozen=True)
class LeastNorm:
    """The shortest convex combination of the rewards' gradients: it points against none of them.

    With `unit` gradients (MARBLE): minimise |sum_k a_k g_k/|g_k||^2 / 2 over sum a = 1, a >= floor; the
    direction is s sum_k a_k g_k/|g_k| with s the mean norm, so no reward gains a say by the scale of its
    gradient. Without: MGDA.

    Source: arXiv 2605.06507; MGDA: Desideri 2012, and arXiv 1810.04650.
    """

    unit: bool = True
    floor: float = 0.0
    solver: str = "osqp"
    level: ClassVar[str] = "gradient"

    def __call__(self, gram: Tensor) -> Solution:
        """Solve the balance.

        Args:
            gram: [K, K] of the raw gradients; rewards whose gradient is zero or not finite are left out.

        Returns:
            A solution whose gap is at most 1e-10; all zero if no reward is active.

        Raises:
            BalanceError: no solver reached that gap.
        """
        gram = gram.double().cpu()
        active = active_rewards(gram)
        if not active.any():
            zero = torch.zeros(len(gram), dtype=torch.float64)
            return Solution(zero, zero, active, 0.0, "none", 0, 0.0, cosines(gram, zero), self.unit)
        raw = gram[active][:, active]
        unit, norms = normalise(raw)
        optimum = least_norm((unit if self.unit else raw).numpy(), self.floor, self.solver)
        alpha = torch.from_numpy(optimum.alpha)
        weights = spread(alpha * norms.mean() / norms if self.unit else alpha, active)
        return Solution(
            spread(alpha, active),
            weights,
            active,
            optimum.gap,
            optimum.solver,
            optimum.fallbacks,
            optimum.seconds,
            cosines(gram, weights),
            self.unit,
        )
