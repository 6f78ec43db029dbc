"""Decide how the rewards' gradients combine into one: by a balance, or as rewards that were mixed beforehand.

A `Combination` answers three questions. Which losses does a refresh take gradients of? Which weights do these
gradients get, given their Gram matrix? Which single loss does an amortised pass take instead?
"""

from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from marble_cli.balance.base import Balance, Solution, active_rewards
from marble_cli.balance.cache import DirectionCache
from marble_cli.balance.constant import ScalarisedReward
from marble_cli.balance.guards import Guarded, describe_guards, warn_violated
from marble_cli.balance.metrics import describe_certificate, describe_solution
from marble_cli.config.algorithm import AlgorithmConfig
from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import BalanceError
from marble_cli.objective.coefficients import Coefficients, RewardCoefficients, advantage_coefficients
from marble_cli.step.alike import solve_once
from marble_cli.step.reward_signal import Signal, scalarised_coefficients


@dataclass(frozen=True)
class Decision:
    """Weights of a refresh's gradients.

    Attributes:
        weights: [R] float64 factors of the gradients.
        cache: for the next steps.
        metrics: of the balance.
        amortised_weights: [K] that an amortised step would have used instead; None if there are none.
        warnings: for the log.
    """

    weights: Tensor
    cache: DirectionCache
    metrics: dict[str, float] = field(default_factory=dict)
    amortised_weights: Tensor | None = None
    warnings: tuple[str, ...] = ()


class Combination(Protocol):
    """Turn K rewards into one direction."""

    def refresh_losses(self, signal: Signal, coefficients: RewardCoefficients) -> Coefficients:
        """Return the coefficients [R, n] of the losses whose gradients are taken, the K rewards first."""

    def decide(self, gram: Tensor, cache: DirectionCache) -> Decision:
        """Weigh the gradients of these losses, given their Gram matrix [R, R]."""

    def amortised_loss(
        self, signal: Signal, coefficients: RewardCoefficients, cache: DirectionCache, weights: Tensor | None
    ) -> Coefficients:
        """Return the coefficients [n] of the one loss of an amortised pass.

        Args:
            signal: of the step.
            coefficients: of the step.
            cache: from the last refresh.
            weights: [K] direction weights; None if nothing is cached.
        """


@dataclass(frozen=True)
class Balanced:
    """Weigh the rewards' gradients by a balance, whose shares are smoothed by `ema` into the cache.

    With `advantage_clip` set, amortised passes mix advantages by the cached shares, as published.
    """

    names: list[str]
    balance: Balance
    ranks: Ranks
    ema: float
    advantage_clip: float | None = None

    def refresh_losses(self, signal: Signal, coefficients: RewardCoefficients) -> Coefficients:
        return coefficients.rewards

    def decide(self, gram: Tensor, cache: DirectionCache) -> Decision:
        """Solve the balance on the main rank, for all ranks.

        Raises:
            BalanceError: no solution is good enough.
        """
        solution = solve_once(self.balance, gram, self.ranks)
        # Without a direction, as of rewards of weight 0 alone, amortised steps would have none either.
        has_direction = bool(solution.weights.any())
        updated = cache.update(solution, gram.diagonal().sqrt(), self.ema) if has_direction else cache
        guards = describe_guards(self.names, gram, solution)
        metrics = {"balance/failed": 0, **describe_solution(self.names, solution, updated), **guards}
        amortised = cache.direction_weights() if self.advantage_clip is None else None
        warnings = warn_left_out(self.names, gram, solution) + warn_violated(guards)
        return Decision(solution.weights, updated, metrics, amortised, warnings)

    def amortised_loss(
        self, signal: Signal, coefficients: RewardCoefficients, cache: DirectionCache, weights: Tensor | None
    ) -> Coefficients:
        if self.advantage_clip is not None and cache.alpha is not None:
            return advantage_coefficients(
                cache.alpha, signal.advantage, signal.applicable, self.advantage_clip
            )
        assert weights is not None
        return coefficients.combined(weights)


@dataclass(frozen=True)
class WithCachedFallback:
    """Weigh by a balance; if that fails, use the cached weights once more and leave the cache unchanged."""

    inner: "Balanced | GuardedScalarised"

    def refresh_losses(self, signal: Signal, coefficients: RewardCoefficients) -> Coefficients:
        return self.inner.refresh_losses(signal, coefficients)

    def decide(self, gram: Tensor, cache: DirectionCache) -> Decision:
        """Solve the balance, or fall back.

        Raises:
            BalanceError: the balance fails and nothing is cached.
        """
        try:
            return self.inner.decide(gram, cache)
        except BalanceError as error:
            cached = cached_weights(cache, self.inner.ranks)
            if cached is None:
                raise
            mixture = cached.new_ones(len(gram) - len(cached))  # the gradient after the rewards', if any
            weights = torch.where(active_rewards(gram), torch.cat([cached, mixture]), 0.0)
            warning = f"{error}. The step uses the cached weights, which stay as they are"
            return Decision(weights, cache, {"balance/failed": 1}, warnings=(warning,))

    def amortised_loss(
        self, signal: Signal, coefficients: RewardCoefficients, cache: DirectionCache, weights: Tensor | None
    ) -> Coefficients:
        return self.inner.amortised_loss(signal, coefficients, cache, weights)


@dataclass(frozen=True)
class OnlyScalarised:
    """Follow one reward mixed from all; the rewards' own gradients are only reported."""

    reward: ScalarisedReward
    algorithm: AlgorithmConfig

    def refresh_losses(self, signal: Signal, coefficients: RewardCoefficients) -> Coefficients:
        mixed = scalarised_coefficients(signal, self.reward, self.algorithm)
        return coefficients.rewards.plus(Coefficients(mixed.p[None], mixed.q[None]))

    def decide(self, gram: Tensor, cache: DirectionCache) -> Decision:
        """Give all weight to the last gradient, the mixed reward's."""
        return Decision(torch.eye(len(gram), dtype=torch.float64)[-1], cache)

    def amortised_loss(
        self, signal: Signal, coefficients: RewardCoefficients, cache: DirectionCache, weights: Tensor | None
    ) -> Coefficients:
        return scalarised_coefficients(signal, self.reward, self.algorithm)


@dataclass(frozen=True)
class GuardedScalarised(OnlyScalarised):
    """Follow one reward mixed from the trained ones, bent by guards, whose weights are cached."""

    names: list[str]
    balance: Guarded
    ranks: Ranks
    ema: float

    def decide(self, gram: Tensor, cache: DirectionCache) -> Decision:
        """Give the weight 1 to the last gradient, the mixed reward's, and project it by the guards.

        Raises:
            BalanceError: no solution is good enough.
        """
        solution, count = solve_once(self.balance, gram, self.ranks), len(self.names)
        rewards = replace(
            solution,
            **{key: getattr(solution, key)[:count] for key in ("alpha", "weights", "active", "margins")},
        )
        # Without the mixture's gradient there is nothing to guard, which tells nothing of other steps.
        has_direction = bool(solution.weights.any())
        updated = cache.update(rewards, gram.diagonal().sqrt()[:count], self.ema) if has_direction else cache
        guards = describe_guards(self.names, gram, solution)
        metrics = {"balance/failed": 0, **describe_certificate(solution), **guards}
        warnings = warn_left_out(self.names, gram, rewards) + warn_violated(guards)
        return Decision(solution.weights, updated, metrics, warnings=warnings)

    def amortised_loss(
        self, signal: Signal, coefficients: RewardCoefficients, cache: DirectionCache, weights: Tensor | None
    ) -> Coefficients:
        assert weights is not None
        mixed = super().amortised_loss(signal, coefficients, cache, weights)
        guards = coefficients.combined(weights)  # the shared term is inside, so this is that of the guards
        return Coefficients(mixed.p + guards.p, mixed.q + guards.q)


def cached_weights(cache: DirectionCache, ranks: Ranks) -> Tensor | None:
    """Return the main rank's cached direction weights [K] on all ranks; None if nothing is cached."""
    weights = cache.direction_weights()
    return None if weights is None else ranks.broadcast(weights)


def warn_left_out(names: list[str], gram: Tensor, solution: Solution) -> tuple[str, ...]:
    """Return a warning that names the rewards that a balance left out, and why; none if there are none."""
    finite = gram.diagonal()[: len(names)].isfinite().tolist()
    absent = [
        f"{name} ({'zero gradient' if known else 'gradient not finite'})"
        for name, known, active in zip(names, finite, solution.active.tolist(), strict=True)
        if not active
    ]
    said = f"left out of the balance: {', '.join(absent)}; metrics.jsonl tells of further such steps"
    return (said,) if absent else ()
