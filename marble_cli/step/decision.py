"""Decide how the rewards' gradients combine: by a balance, by the cached weights where a balance fails, or not at all."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from marble_cli.balance.base import Balance, Solution, active_rewards
from marble_cli.balance.cache import DirectionCache
from marble_cli.balance.constant import ScalarisedReward
from marble_cli.balance.metrics import describe_solution
from marble_cli.config.schema import AlgorithmConfig
from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import BalanceError
from marble_cli.objective.coefficients import Coefficients, RewardCoefficients, advantage_coefficients
from marble_cli.step.alike import solve_once
from marble_cli.step.reward_signal import Signal, scalarised_coefficients


@dataclass(frozen=True)
class Decision:
    """How the rows of a refresh combine.

    Attributes:
        weights: [R] float64 factors of the rows.
        cache: for the steps to come.
        metrics: of the balance.
        compared: [K] weights that an amortised step would have taken instead, None if there are none.
        warnings: for the log.
    """

    weights: Tensor
    cache: DirectionCache
    metrics: dict[str, float] = field(default_factory=dict)
    compared: Tensor | None = None
    warnings: tuple[str, ...] = ()


class Combination(Protocol):
    """What turns K rewards into one direction."""

    def rows(self, signal: Signal, coefficients: RewardCoefficients) -> Coefficients:
        """Return the coefficients [R, n] of the losses whose gradients a refresh takes, the K rewards first."""

    def decide(self, gram: Tensor, cache: DirectionCache) -> Decision:
        """Weigh the rows behind a Gram matrix [R, R]."""

    def single(
        self, signal: Signal, coefficients: RewardCoefficients, cache: DirectionCache, weights: Tensor | None
    ) -> Coefficients:
        """Return the coefficients [n] of the one loss of an amortised pass.

        Args:
            signal: of the step.
            coefficients: of the step.
            cache: from the last refresh.
            weights: [K] direction weights; None where nothing is cached.
        """


@dataclass(frozen=True)
class Balanced:
    """A balance weighs the rewards' gradients; its shares are smoothed by `ema` into the cache.

    With `advantage_clip` set, amortised passes mix advantages by the cached shares, as published.
    """

    names: list[str]
    balance: Balance
    ranks: Ranks
    ema: float
    advantage_clip: float | None = None

    def rows(self, signal: Signal, coefficients: RewardCoefficients) -> Coefficients:
        return coefficients.rewards

    def decide(self, gram: Tensor, cache: DirectionCache) -> Decision:
        """Solve the balance on the main rank, for all.

        Raises:
            BalanceError: no solution is good enough.
        """
        solution = solve_once(self.balance, gram, self.ranks)
        updated = cache.update(solution, gram.diagonal().sqrt(), self.ema)
        metrics = {"balance/failed": 0, **describe_solution(self.names, solution, updated)}
        compared = cache.direction_weights() if self.advantage_clip is None else None
        return Decision(solution.weights, updated, metrics, compared, left_out(self.names, solution))

    def single(
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
    """A balance that takes the cached weights once more where it fails; the cache stays as it is."""

    inner: Balanced

    def rows(self, signal: Signal, coefficients: RewardCoefficients) -> Coefficients:
        return self.inner.rows(signal, coefficients)

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
            weights = torch.where(active_rewards(gram), cached, 0.0)
            warning = f"{error}. The step uses the cached weights, which stay as they are"
            return Decision(weights, cache, {"balance/failed": 1}, warnings=(warning,))

    def single(
        self, signal: Signal, coefficients: RewardCoefficients, cache: DirectionCache, weights: Tensor | None
    ) -> Coefficients:
        return self.inner.single(signal, coefficients, cache, weights)


@dataclass(frozen=True)
class OnlyScalarised:
    """One reward mixed from all; the rewards' own gradients are looked at and have no say."""

    reward: ScalarisedReward
    algorithm: AlgorithmConfig

    def rows(self, signal: Signal, coefficients: RewardCoefficients) -> Coefficients:
        mixed = scalarised_coefficients(signal, self.reward, self.algorithm)
        return coefficients.rewards.plus(Coefficients(mixed.p[None], mixed.q[None]))

    def decide(self, gram: Tensor, cache: DirectionCache) -> Decision:
        """Take the last row, the scalarised reward's."""
        return Decision(torch.eye(len(gram), dtype=torch.float64)[-1], cache)

    def single(
        self, signal: Signal, coefficients: RewardCoefficients, cache: DirectionCache, weights: Tensor | None
    ) -> Coefficients:
        return scalarised_coefficients(signal, self.reward, self.algorithm)


def cached_weights(cache: DirectionCache, ranks: Ranks) -> Tensor | None:
    """Return the main rank's cached direction weights [K] on all ranks; None if nothing is cached."""
    weights = cache.direction_weights()
    return None if weights is None else ranks.broadcast(weights)


def left_out(names: list[str], solution: Solution) -> tuple[str, ...]:
    """Name the rewards that a balance left out, as a warning."""
    absent = [n for n, active in zip(names, solution.active.tolist(), strict=True) if not active]
    return (f"left out of the balance this step: {', '.join(absent)}",) if absent else ()
