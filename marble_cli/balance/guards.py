"""Guard rewards: bend the direction of the trained rewards where it would push a guard down.

With d0 the direction of the trained rewards, |d - d0|^2 is least under d . g_j >= margin_j |d0| |g_j| for
every guard j: the QP of gradient episodic memory (arXiv 1706.08840), with margins. Its answer is
d = d0 + sum_j w_j g_j, w_j >= 0, so an amortised step has the direction of the cached weights as before.

Guards that want opposite things have no such d, or a very long one. So a violation has a price per unit of
|d0|: `PUSHED_DOWN` below zero, `BELOW_MARGIN` between zero and the margin. Nothing is violated unless a
multiplier reaches its price. Then the violation is the least at these prices, margins yield before a guard is
pushed down, and d stays bounded.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from marble_cli.balance.base import ROUNDING, Balance, Solution, Stateful, active_rewards, cosines, spread
from marble_cli.balance.cone import Projection, project
from marble_cli.balance.simplex import Array

PUSHED_DOWN = 1000.0  # enough for all guards but those with a cosine below -0.9999995
BELOW_MARGIN = 100.0
KEPT = 1e-9  # a violation that is rounding


@dataclass(frozen=True)
class Guards:
    """The rewards that are guards.

    Attributes:
        margins: [K], in [0, 1); NaN for a trained reward.
        solver: of the QP.
    """

    margins: tuple[float, ...]
    solver: str = "osqp"

    @property
    def trained(self) -> Tensor:
        """Return [K] bool, false for guards."""
        return torch.tensor(self.margins, dtype=torch.float64).isnan()

    def with_mixture(self) -> "Guards":
        """Return the guards of K + 1 gradients, of which the last is that of a mixture of rewards."""
        return replace(self, margins=(*self.margins, float("nan")))

    def project(self, gram: Tensor, weights: Tensor) -> tuple[Tensor, Projection]:
        """Project the direction d0 = sum_k weights_k g_k.

        Args:
            gram: [K, K] float64 of the raw gradients.
            weights: [K] float64; zero for guards and for gradients that are zero or not finite.

        Returns:
            [K] float64, what to add to the weights: w_j of every guard, at least 0, and 0 elsewhere. All are
            zero if d0 is zero up to rounding. Also the projection of d0 at unit length.

        Raises:
            BalanceError: no solver reached a residual of 1e-10.
        """
        active = active_rewards(gram)
        unit, norms, length = _unit(gram, weights, active)
        places = np.flatnonzero(~self.trained[active].numpy())
        margins = np.array(self.margins)[active.numpy()][places]
        along = unit[places] @ (weights[active].numpy() * norms)
        if not length:
            return torch.zeros_like(weights), Projection(np.zeros(len(places)), 0.0, "none", 0)
        # Twice each guard with a margin: its zero holds before its margin does.
        lifted = np.flatnonzero(margins)
        rows = np.concatenate([places, places[lifted]])
        most = np.repeat([PUSHED_DOWN, BELOW_MARGIN], [len(places), len(lifted)])
        slack = np.concatenate([along / length, along[lifted] / length - margins[lifted]])
        projection = project(unit[np.ix_(rows, rows)], slack, self.solver, most)
        multipliers = np.bincount(rows, projection.multipliers, minlength=len(norms))
        return spread(torch.from_numpy(multipliers * length / norms), active), projection


def _unit(gram: Tensor, weights: Tensor, active: Tensor) -> tuple[Array, Array, float]:
    """Return the A active gradients' Gram matrix at unit length and norms, and |sum_k weights_k g_k|.

    That length is zero if the sum vanishes up to rounding.
    """
    raw = gram[active][:, active].numpy()
    norms = np.sqrt(raw.diagonal())
    unit = raw / norms[:, None] / norms
    terms = weights[active].numpy() * norms
    square = float(terms @ unit @ terms)
    vanishes = square <= ROUNDING * np.abs(terms).sum() ** 2
    return unit, norms, 0.0 if vanishes else float(np.sqrt(square))


@dataclass(frozen=True)
class Guarded:
    """Balance the trained rewards by `balance`, then project their direction by `guards`."""

    balance: Balance
    guards: Guards

    def __call__(self, gram: Tensor) -> Solution:
        """Solve both.

        Args:
            gram: [K, K] of the raw gradients of all rewards. Guards whose gradient is zero or not finite are
                left out, as trained rewards are.

        Returns:
            A solution whose shares of trained rewards are those of the balance. A guard's share stands in the
            same relation to its weight, and comes on top. The gap is the larger one of the balance's and of
            the projection's residual.

        Raises:
            BalanceError: the balance failed, or no solver reached a residual of 1e-10.
        """
        began = time.perf_counter()
        gram, trained = gram.detach().double().cpu(), self.guards.trained
        inner = self.balance(gram[trained][:, trained])
        weights, alpha = spread(inner.weights, trained), spread(inner.alpha, trained)
        added, projection = self.guards.project(gram, weights)
        active = ~trained & active_rewards(gram)
        active[trained] = inner.active
        norms, own = gram.diagonal().sqrt(), active & trained
        share = added * norms / norms[own].mean() if inner.unit and own.any() else added
        solvers = {inner.solver, projection.solver} - {"none"}
        return replace(
            inner,
            alpha=alpha + torch.where(added > 0.0, share, 0.0),
            weights=weights + added,
            active=active,
            gap=float(np.fmax(inner.gap, projection.residual)) if projection.multipliers.any() else inner.gap,
            solver=", ".join(sorted(solvers)) or "none",
            fallbacks=inner.fallbacks + projection.fallbacks,
            seconds=time.perf_counter() - began,
            margins=torch.tensor(self.guards.margins, dtype=torch.float64),
        )


class StatefulGuarded(Guarded):
    """`Guarded` around a `Stateful` balance, whose state is the state."""

    balance: Stateful  # type: ignore[assignment]

    def state_dict(self) -> Mapping[str, Tensor]:
        return self.balance.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> object:
        return self.balance.load_state_dict(state)


def guard(balance: Balance, guards: Guards) -> Guarded:
    """Return a balance of trained rewards with guards, `Stateful` if it is."""
    return (StatefulGuarded if isinstance(balance, Stateful) else Guarded)(balance, guards)


def describe_guards(names: Sequence[str], gram: Tensor, solution: Solution) -> dict[str, float]:
    """Return the metrics of the guards that were active in a solution; lengths are in units of |d0|.

    Args:
        names: of the K rewards.
        gram: [R, R] float64 that was solved for, of the rewards first.
        solution: its solution; one without guards has no such metrics.
    """
    metrics: dict[str, float] = {}
    if solution.margins is None:
        return metrics
    active = active_rewards(gram)
    trained = torch.where(solution.margins.isnan(), solution.weights, 0.0)
    unit, norms, length = _unit(gram, trained, active)
    terms = solution.weights[active].numpy() * norms
    along = spread(torch.from_numpy(unit @ terms / (length or 1.0)), active)
    before = cosines(gram, trained)
    for k, name in enumerate(names):
        if solution.margins[k].isnan() or not active[k]:
            continue
        multiplier = solution.weights[k].item() * gram[k, k].sqrt().item() / (length or 1.0)
        short = (solution.margins[k] - along[k]).item() if length else 0.0
        metrics |= {
            f"balance/weight/{name}": solution.weights[k].item(),
            f"balance/guard/{name}/acted": float(multiplier > 0.0),
            f"balance/guard/{name}/multiplier": multiplier,
            f"balance/guard/{name}/violation": short if short > KEPT else 0.0,
            f"balance/guard/{name}/cosine_before": before[k].item(),
        }
    return metrics


def warn_violated(metrics: Mapping[str, float]) -> tuple[str, ...]:
    """Return a warning that names the guards whose metrics say that they are violated, if any."""
    short = {key.split("/")[2]: value for key, value in metrics.items() if key.endswith("/violation")}
    named = ", ".join(f"{name} by {value:.2g}" for name, value in short.items() if value)
    return (f"no direction satisfies all guards; the closest violates {named}",) if named else ()
