"""Summarise in numbers what the balance of a run did: a pure function of its metrics."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from statistics import fmean, median, stdev
from typing import Any

from marble_cli.metrics.history import History, series
from marble_cli.metrics.jsonl import Row

SETTLED = 8  # fewer refreshes cannot separate drift from scatter of the shares
SAME = 1e-6  # difference of equal shares; the QP is solved far better than that


@dataclass(frozen=True)
class Cosines:
    """Cosines over `count` steps; `negative` is the share of those below zero.

    `error` is the standard error of the mean, taking the steps as independent; None for a single step.
    """

    count: int
    mean: float
    lowest: float
    negative: float
    error: float | None


@dataclass(frozen=True)
class GuardSummary:
    """Summary of a guard over the refreshes that had its gradient.

    Attributes:
        acted: share of them in which it bent the direction.
        multiplier: median length of what it added then, per length of the trained rewards' direction; None if
            it never acted.
        before: cosines of the trained rewards' direction with its gradient.
        violation: the largest, in the same unit.
    """

    acted: float
    multiplier: float | None
    before: Cosines
    violation: float


@dataclass(frozen=True)
class RewardSummary:
    """Summary of one reward over the run; a figure is None if the run did not record it.

    Attributes:
        alpha: mean share over the steps that have shares; 0 in those whose balance left the reward out.
        alpha_cached: the last share after smoothing.
        alpha_lowest: the lowest share that a refresh solved for.
        at_lowest: share of the refreshes that solved for it.
        weight: median factor of the raw gradient.
        grad_norm: median norm of the raw gradient.
        cosine: of the applied direction with the gradient, if measured.
        effective_samples: median of (sum |A|)^2 / sum A^2 over a step's advantages; at most `applicable`, the
            median number of images that the reward applies to.
        start, end: means on held-out prompts at the first and last evaluation; `end` needs two.
        guard: what it did as a guard; None for a trained reward.
    """

    name: str
    alpha: float | None
    alpha_cached: float | None
    alpha_lowest: float | None
    at_lowest: float | None
    weight: float | None
    grad_norm: float | None
    cosine: Cosines | None
    effective_samples: float | None
    applicable: float | None
    start: float | None
    end: float | None
    guard: GuardSummary | None = None


@dataclass(frozen=True)
class Pair:
    """Cosine between the gradients of two rewards over the refreshes that had both."""

    first: str
    second: str
    cosine: Cosines


@dataclass(frozen=True)
class Explanation:
    """Summary of what the balance did; a figure is None if the run did not record it.

    Attributes:
        steps: optimizer steps.
        refreshes: steps that took every reward's gradient or solved the balance.
        fallbacks: number of solvers that were refused over the run.
        largest_gap: of all solutions.
        solve_seconds: median time of a solution.
        pairs: of rewards, in their order; empty without pairwise cosines.
        conflict_share: share of the pairs of active rewards with a negative cosine, mean over the refreshes.
        pushed_down: the lowest cosine of each measured step, so that `negative` is the share of steps in
            which some reward was pushed down.
        cached_pushed_down: the same of the direction that the cached weights would have given at a refresh,
            as an estimate for the steps between refreshes.
        staleness: cosine of the direction that the cached weights would have given with the fresh one.
        scatter: see `scatter`.
    """

    steps: int
    refreshes: int
    fallbacks: int | None
    largest_gap: float | None
    solve_seconds: float | None
    rewards: tuple[RewardSummary, ...]
    pairs: tuple[Pair, ...]
    conflict_share: float | None
    pushed_down: Cosines | None
    cached_pushed_down: Cosines | None
    staleness: Cosines | None
    scatter: float | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values by reward name, for JSON; a missing figure is null."""
        tree = asdict(self)
        tree["rewards"] = {reward.pop("name"): reward for reward in tree["rewards"]}
        return tree


def explain(history: History) -> Explanation:
    """Summarise a run's metrics."""
    train, refreshes = history.train, history.refreshes
    fallbacks, gaps = _values(train, "balance/fallbacks"), _values(train, "balance/gap")
    pairs = _pairs(history)
    return Explanation(
        steps=len(train),
        refreshes=len(refreshes),
        fallbacks=int(sum(fallbacks)) if fallbacks else None,
        largest_gap=max(gaps, default=None),
        solve_seconds=_median(_values(train, "balance/solve_seconds")),
        rewards=tuple(_reward(history, name) for name in history.rewards),
        pairs=pairs,
        conflict_share=_mean(_values(refreshes, "balance/conflict_share")),
        pushed_down=cosines([value for _, value in lowest_cosines(history)]),
        cached_pushed_down=cosines([v for _, v in lowest_cosines(history, "balance/cached_cosine")]),
        staleness=cosines(_values(refreshes, "balance/staleness_cosine")),
        scatter=scatter([history.fresh_shares(name)[1] for name in history.rewards]),
    )


def cosines(values: Sequence[float]) -> Cosines | None:
    """Summarise cosines; None for an empty list."""
    if not values:
        return None
    count = len(values)
    error = stdev(values) / math.sqrt(count) if count > 1 else None
    return Cosines(count, fmean(values), min(values), sum(value < 0 for value in values) / count, error)


def lowest_cosines(history: History, figure: str = "balance/cosine") -> list[tuple[int, float]]:
    """Return (step, lowest cosine of the applied direction with any gradient) where it was measured."""
    keys = [f"{figure}/{name}" for name in history.rewards]
    measured = [(row["step"], [row[key] for key in keys if key in row]) for row in history.train]
    return [(step, min(values)) for step, values in measured if values]


def pairwise_key(rows: Sequence[Row], first: str, second: str) -> str:
    """Return the key of the cosine between two rewards' gradients, which names either of them first."""
    key, turned = (f"balance/pairwise_cosine/{a}/{b}" for a, b in ((first, second), (second, first)))
    return turned if any(turned in row for row in rows) else key


def scatter(shares: Sequence[Sequence[float]]) -> float | None:
    """Mean squared change between successive shares over twice their variance, all rewards together.

    The ratio is near 1 if the shares scatter about a constant and near 0 if they drift. It is None if they
    hardly vary or are too few. Source: von Neumann 1941, the mean square successive difference.

    Args:
        shares: [K] lists of a reward's unsmoothed shares, in the order of the refreshes.
    """
    known = [values for values in shares if len(values) >= SETTLED]
    variance = sum(stdev(values) ** 2 for values in known)
    change = sum(fmean((b - a) ** 2 for a, b in pairwise(v)) for v in known)
    return change / (2 * variance) if variance > 1e-12 else None


def _reward(history: History, name: str) -> RewardSummary:
    def figures(key: str) -> list[float]:
        return _values(history.train, f"{key}/{name}")

    fresh, cached = history.fresh_shares(name)[1], history.cached_shares(name)[1]
    shares, start, end = figures("balance/alpha"), *history.ends(name)
    balanced = sum(any(f"balance/alpha/{other}" in row for other in history.rewards) for row in history.train)
    return RewardSummary(
        name=name,
        alpha=sum(shares) / balanced if shares else None,
        alpha_cached=cached[-1] if cached else None,
        alpha_lowest=min(fresh, default=None),
        at_lowest=_mean([share <= min(fresh) + SAME for share in fresh]),
        weight=_median(figures("balance/weight")),
        grad_norm=_median(figures("balance/grad_norm")),
        cosine=cosines(figures("balance/cosine")),
        effective_samples=_median(_values(history.train, f"advantage/{name}/effective_samples")),
        applicable=_median(_values(history.train, f"reward/{name}/applicable")),
        start=start,
        end=end,
        guard=_guard(history, name),
    )


def _guard(history: History, name: str) -> GuardSummary | None:
    def figures(key: str) -> list[float]:
        return _values(history.train, f"balance/guard/{name}/{key}")

    before = cosines(figures("cosine_before"))
    if before is None:
        return None
    acted = [multiplier for multiplier in figures("multiplier") if multiplier > 0]
    return GuardSummary(len(acted) / before.count, _median(acted), before, max(figures("violation")))


def _pairs(history: History) -> tuple[Pair, ...]:
    pairs = []
    for first, second in combinations(history.rewards, 2):
        cosine = cosines(_values(history.train, pairwise_key(history.train, first, second)))
        if cosine is not None:
            pairs.append(Pair(first, second, cosine))
    return tuple(pairs)


def _values(rows: Sequence[Row], key: str) -> list[float]:
    return series(rows, key)[1]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None
