"""Find one optimizer step's direction: signal -> coefficients -> gradients -> Gram matrix -> balance -> direction.

A refresh takes every reward's gradient apart and balances them; an amortised step takes one backward pass with the
cached weights. What a step does is chosen once per run, by `make_descent`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from marble_cli.balance.base import Balance
from marble_cli.balance.cache import DirectionCache
from marble_cli.balance.constant import ScalarisedReward
from marble_cli.balance.gram import gram
from marble_cli.balance.metrics import describe_cache, describe_gradients, describe_solution
from marble_cli.config.schema import Amortize, BalanceMode, RunConfig, SharedTerm
from marble_cli.distributed.layout import Layout
from marble_cli.distributed.ranks import Ranks
from marble_cli.objective.coefficients import Coefficients, RewardCoefficients, reward_coefficients
from marble_cli.policy.base import Policy
from marble_cli.step.alike import solve_once
from marble_cli.step.batches import Chunk, TrainingSet, chunks, split
from marble_cli.step.decision import (
    Balanced,
    Combination,
    OnlyScalarised,
    WithCachedFallback,
    cached_weights,
    left_out,
)
from marble_cli.step.gradients import (
    Gradients,
    Objective,
    Step,
    mixture_gradient,
    reward_gradients,
    velocity_gram,
)
from marble_cli.step.reward_signal import Signal


@dataclass(frozen=True)
class Direction:
    """A step's direction.

    Attributes:
        gradient: [n] as far as this rank holds it.
        cache: for the steps to come.
        metrics: loss terms and what is worth logging of the balance.
        warnings: for the log.
    """

    gradient: Tensor
    cache: DirectionCache
    metrics: dict[str, float]
    warnings: tuple[str, ...] = ()


class Strategy(Protocol):
    """What finds a step's direction over all ranks' samples."""

    def __call__(
        self, step: Step, signal: Signal, coefficients: RewardCoefficients, cache: DirectionCache
    ) -> Direction: ...


@dataclass(frozen=True)
class Refresh:
    """Combine the gradients of a share of the micro-batches, then take the others along that direction.

    Attributes:
        names: of the K rewards.
        combination: weighs the gradients.
        fraction: share of the micro-batches on which the rewards are taken apart.
    """

    names: list[str]
    combination: Combination
    fraction: float

    def __call__(
        self, step: Step, signal: Signal, coefficients: RewardCoefficients, cache: DirectionCache
    ) -> Direction:
        chosen, others = _share(step, signal, self.fraction)
        rows = self.combination.rows(signal, coefficients)
        found, matrix = _apart(step, chosen, signal, rows, coefficients.shared)
        decision = self.combination.decide(matrix, cache)
        metrics: dict[str, float] = {"balance/refresh": 1, **decision.metrics}
        metrics |= describe_gradients(self.names, matrix, decision.weights, decision.compared)
        result = _along(found, decision.weights)
        del found  # K + 1 gradients; the other micro-batches need their room
        if others:
            weights = decision.weights[: len(self.names)]
            single = self.combination.single(signal, coefficients, decision.cache, weights)
            result = _add(result, mixture_gradient(step, others, single))
        metrics |= _losses(result)
        return Direction(result.rows[0], decision.cache, metrics, decision.warnings)


@dataclass(frozen=True)
class Amortised:
    """Take one backward pass whose gradient is the direction of the cached weights."""

    names: list[str]
    combination: Combination

    def __call__(
        self, step: Step, signal: Signal, coefficients: RewardCoefficients, cache: DirectionCache
    ) -> Direction:
        weights = cached_weights(cache, step.layout.ranks)
        single = self.combination.single(signal, coefficients, cache, weights)
        result = mixture_gradient(step, _chunks(step), single)
        metrics = {"balance/refresh": 0, **_losses(result), **describe_cache(self.names, cache)}
        return Direction(result.rows[0], cache, metrics)


@dataclass(frozen=True)
class Schedule:
    """Which steps refresh.

    Attributes:
        every: a refresh per so many steps, the first step included.
        warmup: steps at the start that all refresh.
        needs_cache: a step without cached weights refreshes, too.
    """

    every: int
    warmup: int
    needs_cache: bool

    def refreshes(self, step: int, cache: DirectionCache) -> bool:
        """Tell whether `step` (1-based) takes every reward's gradient apart."""
        due = step <= self.warmup or (step - 1) % self.every == 0
        return due or (self.needs_cache and cache.alpha is None)


@dataclass(frozen=True)
class Alternating:
    """Refresh where it is due, and take amortised steps between."""

    schedule: Schedule
    refresh: Refresh
    amortised: Amortised

    def __call__(
        self, step: Step, signal: Signal, coefficients: RewardCoefficients, cache: DirectionCache
    ) -> Direction:
        due = self.schedule.refreshes(step.number, cache)
        return (self.refresh if due else self.amortised)(step, signal, coefficients, cache)


@dataclass(frozen=True)
class OutputSpace:
    """Solve a QP at every step on the gradients with respect to the velocities, then take one backward pass.

    Where the schedule has a refresh, the rewards' own gradients are taken as well, only to be looked at.
    """

    names: list[str]
    balance: Balance
    schedule: Schedule

    def __call__(
        self, step: Step, signal: Signal, coefficients: RewardCoefficients, cache: DirectionCache
    ) -> Direction:
        parts, ranks = _chunks(step), step.layout.ranks
        inner = velocity_gram(step, parts, coefficients.rewards)
        solution = solve_once(self.balance, ranks.broadcast(ranks.all_reduce(inner)), ranks)
        metrics: dict[str, float] = {"balance/refresh": 1}
        if self.schedule.refreshes(step.number, cache):
            found, matrix = _apart(step, parts, signal, coefficients.rewards, coefficients.shared)
            metrics |= describe_gradients(self.names, matrix, solution.weights, None)
            result = _along(found, solution.weights)
        else:
            result = mixture_gradient(step, parts, coefficients.combined(solution.weights))
        metrics |= _losses(result) | describe_solution(self.names, solution, cache)
        return Direction(result.rows[0], cache, metrics, left_out(self.names, solution))


@dataclass(frozen=True)
class Descent:
    """Everything that turns a step's signal into its direction.

    Attributes:
        policy: whose trained weights the gradient is of.
        layout: how ranks hold and sum gradients.
        objective: constants of the loss.
        shared_term: whether every reward's loss keeps the part that all share.
        balance: of the run; it may have a state.
        strategy: what a step does.
    """

    policy: Policy
    layout: Layout
    objective: Objective
    shared_term: SharedTerm
    balance: Balance | ScalarisedReward
    strategy: Strategy

    def direct(
        self,
        number: int,
        signal: Signal,
        data: TrainingSet,
        cache: DirectionCache,
        advance: Callable[[int], None],
    ) -> Direction:
        """Return the direction of step `number`, over all ranks' samples."""
        step = Step(self.policy, self.layout, data, self.objective, number, advance)
        coefficients = reward_coefficients(signal.optimality, signal.applicable, shared_term=self.shared_term)
        return self.strategy(step, signal, coefficients, cache)


def make_descent(
    config: RunConfig, names: list[str], policy: Policy, balance: Balance | ScalarisedReward, layout: Layout
) -> Descent:
    """Choose the strategy of a run's steps."""
    algorithm, settings = config.algorithm, config.balance
    objective = Objective(
        algorithm.beta,
        algorithm.advantage.clip,
        algorithm.kl_coef,
        config.trainer.seed,
        config.trainer.micro_batch_size,
    )
    scalarised = isinstance(balance, ScalarisedReward)
    shared_term = SharedTerm.inside if scalarised else settings.shared_term
    strategy = _strategy(config, names, balance, layout.ranks)
    return Descent(policy, layout, objective, shared_term, balance, strategy)


def _strategy(
    config: RunConfig, names: list[str], balance: Balance | ScalarisedReward, ranks: Ranks
) -> Strategy:
    settings = config.balance
    combination: Combination
    needs_cache = False
    if isinstance(balance, ScalarisedReward):  # the output space is refused with the configuration
        combination = OnlyScalarised(balance, config.algorithm)
    elif settings.mode is BalanceMode.output_space:
        return OutputSpace(names, balance, Schedule(settings.refresh_every, settings.warmup, False))
    else:
        clip = config.algorithm.advantage.clip if settings.amortize is Amortize.advantage else None
        combination = WithCachedFallback(Balanced(names, balance, ranks, settings.ema, clip))
        needs_cache = True
    refresh = Refresh(names, combination, settings.refresh_fraction)
    if settings.mode is BalanceMode.full:
        return refresh
    schedule = Schedule(settings.refresh_every, settings.warmup, needs_cache)
    return Alternating(schedule, refresh, Amortised(names, combination))


def _chunks(step: Step) -> list[Chunk]:
    return chunks(step.data, step.objective.micro_batch_size)


def _apart(
    step: Step, chosen: list[Chunk], signal: Signal, rows: Coefficients, rest: Coefficients
) -> tuple[Gradients, Tensor]:
    """Take the gradients of `rows` over the `chosen` micro-batches, that of `rest` last, and the rows' Gram matrix.

    The matrix is of the whole step's gradients as far as a share of it can tell: a reward's row is scaled up by its
    applicable samples over those that were looked at. Every rank gets the main rank's.
    """
    found = reward_gradients(step, chosen, rows, rest)
    matrix = step.layout.sum_over_shards(gram(found.rows[:-1]))
    if len(chosen) < len(_chunks(step)):
        seen, times = _seen(step, chosen, signal), step.data.times.shape[1]
        scale = torch.where(seen > 0, signal.applicable.sum(1) * times / seen, 0.0)
        scale = torch.cat([scale, torch.ones(len(matrix) - len(scale))])
        matrix = matrix * scale[:, None] * scale
    return found, step.layout.ranks.broadcast(matrix)


def _share(step: Step, signal: Signal, fraction: float) -> tuple[list[Chunk], list[Chunk]]:
    """Return micro-batches to take the rewards apart on, and the others; all, where a share would miss a reward."""
    parts = _chunks(step)
    chosen, others = split(parts, fraction)
    missed = signal.applicable.any(1) & (_seen(step, chosen, signal) == 0)
    return (parts, []) if missed.any() else (chosen, others)


def _seen(step: Step, chosen: list[Chunk], signal: Signal) -> Tensor:
    """Count [K] applicable samples in the `chosen` micro-batches of all ranks, which cut their shares alike."""
    rows, each = torch.cat([part.rows for part in chosen]), len(step.data.x0)
    images = torch.cat([rows + rank * each for rank in range(step.layout.ranks.world)])
    return signal.applicable[:, images].sum(1)


def _along(found: Gradients, weights: Tensor) -> Gradients:
    """Add up all rows but the last by their weights, and the last, to one."""
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
