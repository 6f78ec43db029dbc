"""Balance by projecting every reward's gradient, and adding the projections up: UPGrad."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from marble_cli.balance.base import Solution, active_rewards, spread
from marble_cli.balance.cone import project


@dataclass(frozen=True)
class ProjectedSum:
    """Add up the rewards' gradients, each projected onto the directions that push no reward down.

    The direction is sum_k c_k p(g_k), with p(g) the nearest vector to g that no gradient opposes. A sum of
    such vectors opposes none either. Where nothing conflicts it is the weighted mean of the gradients, with
    their lengths; where rewards conflict, each gives up only the part of its gradient that pushes another
    down.

    Attributes:
        weights: [K] c_k, not negative, scaled to sum to one over the active rewards.
        solver: of the K QPs.

    Source: arXiv 2406.16232, Section 3 (unconflicting projection of gradients).
    """

    weights: tuple[float, ...]
    solver: str = "osqp"

    def __call__(self, gram: Tensor) -> Solution:
        """Solve the balance.

        Args:
            gram: [K, K] of the raw gradients. Rewards whose gradient is zero or not finite are left out.

        Returns:
            A solution whose gap is the largest residual of the projections of unit gradients, at most 1e-10.
            Its shares are its weights. All are zero if no reward is active.

        Raises:
            BalanceError: no solver reached that residual.
        """
        began = time.perf_counter()
        gram = gram.detach().double().cpu()
        active = active_rewards(gram)
        raw = gram[active][:, active].numpy()
        norms = np.sqrt(raw.diagonal())
        unit = raw / norms[:, None] / norms
        own = np.array(self.weights)[active.numpy()]
        terms, solvers, fallbacks, gap = np.zeros(len(norms)), {"none"}, 0, 0.0
        for k in np.flatnonzero(own):
            projection = project(unit, unit[k], self.solver)
            terms += own[k] / own.sum() * norms[k] * (np.eye(len(norms))[k] + projection.multipliers)
            solvers.add(projection.solver)
            fallbacks, gap = fallbacks + projection.fallbacks, max(gap, projection.residual)
        weights = spread(torch.from_numpy(terms / norms), active)
        used = ", ".join(sorted(solvers - {"none"})) or "none"
        return Solution(weights, weights, active, gap, used, fallbacks, time.perf_counter() - began)
