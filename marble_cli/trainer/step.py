"""One optimizer step's direction: refresh (every reward's own gradient) or amortised (one backward pass)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from marble_cli.balance.amortise import DirectionCache, advantage_coefficients, amortised_coefficients
from marble_cli.balance.base import Balance, Solution, active_rewards
from marble_cli.balance.constant import Mixture
from marble_cli.balance.gram import gram
from marble_cli.config.schema import Amortize, BalanceMode, RunConfig, SharedTerm
from marble_cli.distributed.layout import Layout
from marble_cli.errors import BalanceError
from marble_cli.losses.nft import coefficients, shared_coefficients
from marble_cli.policy.base import Policy
from marble_cli.trainer.alike import solve_once
from marble_cli.trainer.batches import Chunk, TrainingSet, chunks, split
from marble_cli.trainer.explain import describe_cache, describe_gradients, describe_solution
from marble_cli.trainer.gradients import (
    Coefficients,
    Gradients,
    Objective,
    Step,
    mixture_gradient,
    reward_gradients,
    velocity_gram,
)
from marble_cli.trainer.signal import Signal, single_mixture


@dataclass(frozen=True)
class Direction:
    """The step's gradient [n] as far as this rank holds it, its loss terms and what is worth logging; `cache` serves the steps to come."""

    gradient: Tensor
    cache: DirectionCache
    metrics: dict[str, float]
    warnings: tuple[str, ...] = ()


class Director:
    """Turns a step's signal into a direction with the configured balance."""

    def __init__(
        self, config: RunConfig, names: list[str], policy: Policy, balance: Balance | Mixture, layout: Layout
    ):
        self.config, self.names, self.policy = config, names, policy
        self.layout, self.ranks = layout, layout.ranks
        self.mixture: Mixture | None = balance if isinstance(balance, Mixture) else None
        self.balance: Balance | None = None if isinstance(balance, Mixture) else balance
        self.outside = config.balance.shared_term is SharedTerm.outside and self.mixture is None
        self.by_advantage = config.balance.amortize is Amortize.advantage
        self.output_space = config.balance.mode is BalanceMode.output_space
        self.objective = Objective(
            config.algorithm.beta,
            config.algorithm.advantage.clip,
            config.algorithm.kl_coef,
            config.trainer.seed,
            config.trainer.micro_batch_size,
        )

    def refreshes(self, step: int, cache: DirectionCache) -> bool:
        """Whether `step` (1-based) takes every reward's gradient apart."""
        balance = self.config.balance
        if (
            balance.mode is BalanceMode.full
            or step <= balance.warmup
            or (step - 1) % balance.refresh_every == 0
        ):
            return True
        return self.mixture is None and not self.output_space and cache.alpha is None

    def direct(
        self,
        number: int,
        signal: Signal,
        data: TrainingSet,
        cache: DirectionCache,
        advance: Callable[[int], None],
    ) -> Direction:
        """The direction of step `number`, over all ranks' samples."""
        step = Step(self.policy, self.layout, data, self.objective, number, advance)
        parts = chunks(data, self.objective.micro_batch_size)
        if self.output_space:
            return self._output_space(step, parts, signal, cache)
        if self.refreshes(number, cache):
            return self._refresh(step, parts, signal, cache)
        result = mixture_gradient(step, parts, self._mixed(signal, cache, self._cached(cache)))
        metrics = {"balance/refresh": 0, **_losses(result), **describe_cache(self.names, cache)}
        return Direction(result.rows[0], cache, metrics)

    def _refresh(self, step: Step, parts: list[Chunk], signal: Signal, cache: DirectionCache) -> Direction:
        """Balance the gradients of a share of the micro-batches, then take the others along that direction."""
        chosen, others = self._split(step, parts, signal)
        found, matrix = self._apart(step, chosen, signal, len(parts))
        count = len(self.names)
        weights, solution, warnings = self._weigh(matrix, cache)
        metrics: dict[str, float] = {"balance/refresh": 1}
        if self.balance is not None:
            metrics["balance/failed"] = int(solution is None)
        cached = None if solution is None or self.by_advantage else cache.direction_weights()
        metrics |= describe_gradients(self.names, matrix, weights, cached)
        if solution is not None:
            cache = cache.update(solution, matrix.diagonal().sqrt(), self.config.balance.ema)
            metrics |= describe_solution(self.names, solution, cache)
        result = _along(found, weights)
        del found  # K + 1 gradients; the other micro-batches need their room
        if others:
            rest = mixture_gradient(step, others, self._mixed(signal, cache, weights[:count]))
            result = _add(result, rest)
        metrics |= _losses(result)
        return Direction(result.rows[0], cache, metrics, warnings)

    def _weigh(
        self, matrix: Tensor, cache: DirectionCache
    ) -> tuple[Tensor, Solution | None, tuple[str, ...]]:
        """The main rank's weights of the Gram matrix's rows, the solution they come from, and warnings.

        Where the balance fails, the cached weights serve once more, and stay as they are.

        Raises:
            BalanceError: it fails and nothing is cached.
        """
        if self.balance is None:
            return _last(len(matrix)), None, ()
        try:
            solution = solve_once(self.balance, matrix, self.ranks)
        except BalanceError as error:
            cached = self._cached(cache)
            if cached is None:
                raise
            cached = torch.where(active_rewards(matrix), cached, 0.0)
            return cached, None, (f"{error}. The step takes the cached weights, which stay as they are",)
        return solution.weights, solution, self._left_out(solution)

    def _output_space(
        self, step: Step, parts: list[Chunk], signal: Signal, cache: DirectionCache
    ) -> Direction:
        """A QP at every step on the gradients with respect to the velocities, then one backward pass.

        At refresh steps the rewards' own gradients are taken as well, only to be looked at.
        """
        assert self.balance is not None  # a mixture in this mode is refused with the configuration
        rewards, _ = self._losses_apart(signal)
        inner = velocity_gram(step, parts, rewards)
        solution = solve_once(self.balance, self.ranks.first(self.ranks.sum(inner)), self.ranks)
        metrics: dict[str, float] = {"balance/refresh": 1}
        if self.refreshes(step.number, cache):
            found, matrix = self._apart(step, parts, signal, len(parts))
            metrics |= describe_gradients(self.names, matrix, solution.weights, None)
            result = _along(found, solution.weights)
        else:
            result = mixture_gradient(step, parts, self._exact(signal, solution.weights))
        metrics |= _losses(result) | describe_solution(self.names, solution, cache)
        return Direction(result.rows[0], cache, metrics, self._left_out(solution))

    def _apart(self, step: Step, chosen: list[Chunk], signal: Signal, parts: int) -> tuple[Gradients, Tensor]:
        """Rows of `_losses_apart` over the `chosen` of `parts` micro-batches, and the Gram matrix without the last.

        The matrix is of the whole step's gradients as far as a share of it can tell: a reward's row is scaled up by its
        applicable samples over those that were looked at.
        """
        found = reward_gradients(step, chosen, *self._losses_apart(signal))
        matrix = self.layout.total(gram(found.rows[:-1]))
        if len(chosen) < parts:
            seen, times = self._seen(step, chosen, signal), step.data.times.shape[1]
            scale = torch.where(seen > 0, signal.applicable.sum(1) * times / seen, 0.0)
            scale = torch.cat([scale, torch.ones(len(matrix) - len(scale))])
            matrix = matrix * scale[:, None] * scale
        return found, self.ranks.first(matrix)

    def _split(self, step: Step, parts: list[Chunk], signal: Signal) -> tuple[list[Chunk], list[Chunk]]:
        """The micro-batches to take the rewards apart on, and the others; all, where a share would miss a reward."""
        chosen, others = split(parts, self.config.balance.refresh_fraction)
        missed = signal.applicable.any(1) & (self._seen(step, chosen, signal) == 0)
        return (parts, []) if missed.any() else (chosen, others)

    def _seen(self, step: Step, chosen: list[Chunk], signal: Signal) -> Tensor:
        """[K] applicable samples in the `chosen` micro-batches of all ranks, which cut their shares alike."""
        rows, each = torch.cat([part.rows for part in chosen]), len(step.data.x0)
        images = torch.cat([rows + rank * each for rank in range(self.ranks.world)])
        return signal.applicable[:, images].sum(1)

    def _losses_apart(self, signal: Signal) -> tuple[Coefficients, Coefficients]:
        """Every reward's own loss (and that of a mixture of them, last), and what stands outside the balance."""
        p, q = coefficients(
            signal.optimality, signal.applicable, shared_term="outside" if self.outside else "inside"
        )
        nothing = torch.zeros_like(p[0])
        rest = shared_coefficients(signal.applicable) if self.outside else (nothing, nothing)
        if self.mixture is not None:
            mixed = single_mixture(signal, self.mixture, self.config.algorithm)
            p, q = torch.cat([p, mixed[0]]), torch.cat([q, mixed[1]])
        return Coefficients(p, q), Coefficients(*rest)

    def _mixed(self, signal: Signal, cache: DirectionCache, weights: Tensor | None) -> Coefficients:
        """The loss of an amortised step."""
        if self.mixture is not None:
            p, q = single_mixture(signal, self.mixture, self.config.algorithm)
            return Coefficients(p[0], q[0])
        if self.by_advantage and cache.alpha is not None:
            clip = self.config.algorithm.advantage.clip
            return Coefficients(
                *advantage_coefficients(cache.alpha, signal.advantage, signal.applicable, clip)
            )
        assert weights is not None
        return self._exact(signal, weights)

    def _cached(self, cache: DirectionCache) -> Tensor | None:
        """The main rank's cached direction weights on all ranks."""
        weights = cache.direction_weights()
        return None if weights is None else self.ranks.first(weights)

    def _exact(self, signal: Signal, weights: Tensor) -> Coefficients:
        shared_term = self.config.balance.shared_term.value
        return Coefficients(
            *amortised_coefficients(weights, signal.optimality, signal.applicable, shared_term=shared_term)
        )

    def _left_out(self, solution: Solution) -> tuple[str, ...]:
        names = [n for n, active in zip(self.names, solution.active.tolist(), strict=True) if not active]
        return (f"left out of the balance this step: {', '.join(names)}",) if names else ()


def _last(count: int) -> Tensor:
    """[count] float64: the last of `count` rows and nothing else."""
    return torch.eye(count, dtype=torch.float64)[-1]


def _along(found: Gradients, weights: Tensor) -> Gradients:
    """The weighted sum of all rows but the last, and the last, as one."""
    taken = weights != 0  # a reward that is left out may have a gradient and a loss that are not finite
    direction = found.rows[-1].clone()
    for k in taken.nonzero().flatten().tolist():
        direction.add_(found.rows[k], alpha=weights[k].item())
    policy = weights[taken] @ found.losses[:-2][taken] + found.losses[-2]
    return Gradients(direction[None], torch.stack([policy, found.losses[-1]]))


def _add(one: Gradients, other: Gradients) -> Gradients:
    return Gradients(one.rows + other.rows, one.losses + other.losses)


def _losses(result: Gradients) -> dict[str, float]:
    return {"loss/policy": result.losses[0].item(), "loss/kl": result.losses[-1].item()}
