"""Find one optimizer step's direction.

`Descent.direct` is the whole way of a gradient, one stop after another:

    signal -> coefficients     `objective.coefficients`: a row p, q per reward, and one for the shared term
    coefficients -> gradients  `step.gradients`: every reward's own, summed over ranks
    gradients -> Gram matrix   `step.step_gram`: inner products of these, [K, K]
    Gram matrix -> weights     `step.decision`, which asks a balance
    weights -> direction       `Gradients.combined`

That is a `Refresh`. An `Amortised` step has weights already, from the cache: it mixes the coefficients by
them and takes the one gradient of that mixture, which is the same direction for the price of one backward
pass. `Alternating` takes one or the other by a `Schedule`, and `OutputSpace` balances velocities instead.
`make_descent` chooses among them once per run.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from torch import Tensor

from marble_cli.balance.base import Balance
from marble_cli.balance.cache import DirectionCache
from marble_cli.balance.constant import ScalarisedReward
from marble_cli.balance.guards import describe_guards, warn_violated
from marble_cli.balance.metrics import describe_cache, describe_gradients, describe_solution
from marble_cli.config.algorithm import AlgorithmConfig
from marble_cli.config.enums import Amortize, BalanceMode, RefreshWhen, SharedTerm
from marble_cli.config.schema import BalanceConfig, RunConfig
from marble_cli.distributed.layout import Layout
from marble_cli.distributed.ranks import Ranks
from marble_cli.objective.coefficients import RewardCoefficients, reward_coefficients
from marble_cli.objective.decay import kl_coefficient
from marble_cli.policy.base import Policy
from marble_cli.step.alike import solve_once
from marble_cli.step.batches import TrainingSet
from marble_cli.step.decision import (
    Balanced,
    Combination,
    GuardedScalarised,
    OnlyScalarised,
    WithCachedFallback,
    cached_weights,
    warn_left_out,
)
from marble_cli.step.gradients import Gradients, mixture_gradient, reward_gradients
from marble_cli.step.passes import Objective, Step, make_objective
from marble_cli.step.reward_signal import Signal
from marble_cli.step.schedule import Pace, Schedule
from marble_cli.step.staleness import fold, in_halves
from marble_cli.step.step_gram import all_chunks, choose_chunks, images_of, step_gram, velocity_gram


@dataclass(frozen=True)
class Direction:
    """Direction of one step.

    Attributes:
        gradient: [n], this rank's part.
        cache: for the next steps.
        metrics: of the losses and the balance.
        warnings: for the log.
    """

    gradient: Tensor
    cache: DirectionCache
    metrics: dict[str, float]
    warnings: tuple[str, ...] = ()


class Strategy(Protocol):
    """Find a step's direction over all ranks' samples."""

    def __call__(
        self, step: Step, signal: Signal, coefficients: RewardCoefficients, cache: DirectionCache
    ) -> Direction: ...


@dataclass(frozen=True)
class Refresh:
    """Take the rewards' gradients on a share of the micro-batches, combine them, and weigh the others alike.

    Attributes:
        names: of the K rewards.
        combination: weighs the gradients.
        fraction: share of the micro-batches on which every reward's own gradient is taken.
        pace: sets the step of the next refresh; None if refreshes are regular.
    """

    names: list[str]
    combination: Combination
    fraction: float
    pace: Pace | None = None

    def __call__(
        self, step: Step, signal: Signal, coefficients: RewardCoefficients, cache: DirectionCache
    ) -> Direction:
        losses = self.combination.refresh_losses(signal, coefficients)
        images = images_of(losses, signal)
        chosen, others = choose_chunks(step, images, self.fraction)
        if self.pace:
            losses = in_halves(losses, signal.groups)
        gradients = reward_gradients(step, chosen, losses, coefficients.shared)
        halves = matrix = step_gram(step, chosen, images, gradients)
        if self.pace:
            gradients, matrix = gradients.folded(), fold(halves)
        decision = self.combination.decide(matrix, cache)
        combined = gradients.combined(decision.weights)
        del gradients  # K + 1 of them; the other micro-batches need their memory
        if others:
            weights = decision.weights[: len(self.names)]
            mixture = self.combination.amortised_loss(signal, coefficients, decision.cache, weights)
            combined = combined.plus(mixture_gradient(step, others, mixture))
        metrics: dict[str, float] = {"balance/refresh": 1, **decision.metrics}
        metrics |= describe_gradients(self.names, matrix, decision.weights, decision.amortised_weights)
        metrics |= _describe_passes(combined)
        following = decision.cache
        if self.pace:
            following, staleness = self.pace.schedule(step.number, halves, decision, cache)
            metrics |= staleness
        return Direction(combined.rows[0], following, metrics, decision.warnings)


@dataclass(frozen=True)
class Amortised:
    """Take one backward pass whose gradient is the direction of the cached weights."""

    names: list[str]
    combination: Combination

    def __call__(
        self, step: Step, signal: Signal, coefficients: RewardCoefficients, cache: DirectionCache
    ) -> Direction:
        weights = cached_weights(cache, step.layout.ranks)
        mixture = self.combination.amortised_loss(signal, coefficients, cache, weights)
        gradient = mixture_gradient(step, all_chunks(step), mixture)
        metrics = {"balance/refresh": 0, **_describe_passes(gradient), **describe_cache(self.names, cache)}
        return Direction(gradient.rows[0], cache, metrics)


@dataclass(frozen=True)
class Alternating:
    """Refresh if that is due, else take an amortised step."""

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
    """Balance the gradients in the velocities at every step, then take one backward pass.

    If the schedule has a refresh, the rewards' own gradients are taken as well, for the metrics alone.
    """

    names: list[str]
    balance: Balance
    schedule: Schedule

    def __call__(
        self, step: Step, signal: Signal, coefficients: RewardCoefficients, cache: DirectionCache
    ) -> Direction:
        parts, ranks = all_chunks(step), step.layout.ranks
        inner = velocity_gram(step, parts, coefficients.rewards)
        inner = ranks.broadcast(ranks.all_reduce(inner))
        solution = solve_once(self.balance, inner, ranks)
        metrics: dict[str, float] = {"balance/refresh": 1}
        if self.schedule.refreshes(step.number, cache):
            gradients = reward_gradients(step, parts, coefficients.rewards, coefficients.shared)
            matrix = step_gram(step, parts, signal.applicable, gradients)
            metrics |= describe_gradients(self.names, matrix, solution.weights, None)
            combined = gradients.combined(solution.weights)
        else:
            combined = mixture_gradient(step, parts, coefficients.combined(solution.weights))
        guards = describe_guards(self.names, inner, solution)
        metrics |= _describe_passes(combined) | describe_solution(self.names, solution, cache) | guards
        warnings = warn_left_out(self.names, inner, solution) + warn_violated(guards)
        return Direction(combined.rows[0], cache, metrics, warnings)


@dataclass(frozen=True)
class Descent:
    """Turn each step's signal into its direction.

    Attributes:
        policy: whose trained weights the gradient is of.
        layout: how ranks hold and sum gradients.
        objective: constants of the loss, with the KL coefficient of step 1.
        kl_coefficient: that of a step.
        shared_term: whether every reward's loss keeps the part that all losses share.
        balance: of the run; it may have a state, which checkpoints hold.
        strategy: from coefficients to the direction.
    """

    policy: Policy
    layout: Layout
    objective: Objective
    kl_coefficient: Callable[[int], float]
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
        """Find the direction of one step over all ranks' samples.

        Args:
            number: of the step, 1-based.
            signal: of all ranks' images.
            data: this rank's images.
            cache: from the last refresh.
            advance: called with the number of samples after every micro-batch.

        Raises:
            BalanceError: no solution is good enough and nothing is cached; on all ranks.
        """
        objective = replace(self.objective, kl_coef=self.kl_coefficient(number))
        step = Step(self.policy, self.layout, data, objective, number, advance)
        applicable = signal.applicable
        if self.shared_term is SharedTerm.inside:
            # Without signal only the shared term is left, at a first step rounding noise, and unit length
            # would make a direction of it.
            applicable = applicable & (applicable & (signal.optimality != 0.5)).any(1, keepdim=True)
        coefficients = reward_coefficients(signal.optimality, applicable, shared_term=self.shared_term)
        return self.strategy(step, signal, coefficients, cache)


def make_descent(
    config: RunConfig, names: list[str], policy: Policy, balance: Balance | ScalarisedReward, layout: Layout
) -> Descent:
    """Choose the strategy of a run's steps."""
    algorithm, settings = config.algorithm, config.balance
    scalarised = isinstance(balance, ScalarisedReward)
    shared_term = SharedTerm.inside if scalarised else settings.shared_term
    strategy = _strategy(algorithm, settings, names, balance, layout.ranks)
    kl = partial(kl_coefficient, algorithm, steps=config.trainer.steps)
    return Descent(policy, layout, make_objective(config), kl, shared_term, balance, strategy)


def _strategy(
    algorithm: AlgorithmConfig,
    settings: BalanceConfig,
    names: list[str],
    balance: Balance | ScalarisedReward,
    ranks: Ranks,
) -> Strategy:
    combination: Combination
    needs_cache, pace = False, None
    if isinstance(balance, ScalarisedReward):
        # The configuration refuses it together with the output space.
        combination, guarded = OnlyScalarised(balance, algorithm), balance.guarded()
        if guarded is not None:
            inner = GuardedScalarised(balance, algorithm, names, guarded, ranks, settings.ema)
            combination, needs_cache = WithCachedFallback(inner), True
    elif settings.mode is BalanceMode.output_space:
        return OutputSpace(names, balance, Schedule(settings.refresh_every, settings.warmup, False))
    else:
        clip = algorithm.advantage.clip if settings.amortize is Amortize.advantage else None
        combination = WithCachedFallback(Balanced(names, balance, ranks, settings.ema, clip))
        needs_cache = True
        if settings.refresh_when is RefreshWhen.stale:
            pace = Pace(balance, settings.refresh_every, settings.warmup, ranks)
    refresh = Refresh(names, combination, settings.refresh_fraction, pace)
    if settings.mode is BalanceMode.full:
        return refresh
    schedule = Schedule(settings.refresh_every, settings.warmup, needs_cache, paced=pace is not None)
    return Alternating(schedule, refresh, Amortised(names, combination))


def _describe_passes(gradient: Gradients) -> dict[str, float]:
    """Return the losses, and the relative distance of the trained velocities from the behaviour policy's."""
    metrics = {"loss/policy": gradient.losses[0].item(), "loss/kl": gradient.losses[-1].item()}
    gap, size = gradient.velocities.tolist()
    return metrics | ({"policy/deviation": gap / size} if size > 0 and math.isfinite(gap / size) else {})
