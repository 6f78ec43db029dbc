"""Summarise cells: gains over the base model, joint changes, and their bootstrap intervals."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from marble_cli.evaluate.joint import changed_jointly
from scripts.study.cells import REWARDS, TUNING_SEED, Cell
from scripts.study.scores import Folders, Scores, base_name

RESAMPLES = 2000
COMPOSITE, WORST, IMPROVED, DECLINED = "composite", "worst", "improved", "declined"
FIGURES = (*REWARDS, COMPOSITE, IMPROVED, DECLINED)
Gains = dict[str, float]


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval, over seeds and over each seed's prompts."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Summary:
    """A method at one budget and learning rate, over its seeds.

    Attributes:
        cell: one of its cells.
        seeds: how many are finished.
        figures: by reward, trained minus base in standard deviations of the base; their mean (`composite`)
            and least (`worst`); the shares of images that improved and declined jointly.
        all_up: seeds in which the mean of every reward rose.
        drift: mean of the cells' drift; NaN for a merge, which is not trained.
        negative: share of the measured steps whose direction pushed a reward down; None without any.
        cached: share of the refreshes before which the cached weights would have; None without any.
        images_per_second: highest over the seeds, as runs shared the machine; NaN for a merge.
    """

    cell: Cell
    seeds: int
    figures: dict[str, Interval]
    all_up: int
    drift: float
    negative: float | None
    cached: float | None
    images_per_second: float

    def as_json(self) -> dict[str, Any]:
        """Return the figures for results.json."""
        return {
            "budget": self.cell.budget,
            "method": self.cell.method,
            "rate": self.cell.rate,
            "seeds": self.seeds,
            "figures": {key: [value.mean, value.low, value.high] for key, value in self.figures.items()},
            "seeds_with_all_up": self.all_up,
            "drift": _known(self.drift),
            "negative_cosine_share": self.negative,
            "negative_between_refreshes": self.cached,
            "images_per_second": _known(self.images_per_second),
        }


def base_unit(folders: Folders) -> np.ndarray:
    """Return every reward's standard deviation on the base model [K], with the tuning seed."""
    return np.asarray(np.nanstd(Scores.read(folders.result(base_name(TUNING_SEED))).values, axis=1))


def summarise(folders: Folders, cells: list[Cell], unit: np.ndarray) -> Summary | None:
    """Summarise a method at one budget and learning rate over its finished cells; None if there is none.

    Args:
        folders: of the results.
        cells: one per seed.
        unit: [K] what to divide the rewards' differences by.
    """
    cells = [cell for cell in cells if folders.has(cell)]
    if not cells:
        return None
    trained = [Scores.read(folders.result(cell.name)) for cell in cells]
    bases = [Scores.read(folders.result(base_name(cell.seed))) for cell in cells]
    seeds = [
        (one.values.astype(float) - base.values) / unit[:, None]
        for one, base in zip(trained, bases, strict=True)
    ]
    facts = [one.facts for one in trained]
    return Summary(
        cell=cells[0],
        seeds=len(seeds),
        figures=with_intervals(seeds),
        all_up=sum(measure(seed)[WORST] > 0 for seed in seeds),
        drift=float(np.mean([fact.get("drift", np.nan) for fact in facts])),
        negative=_share(facts, "negative", "measured"),
        cached=_share(facts, "negative_cached", "cached"),
        images_per_second=max(fact.get("images_per_second", np.nan) for fact in facts),
    )


def measure(differences: np.ndarray) -> Gains:
    """Return the figures of one seed.

    Args:
        differences: [K, n] trained minus base; NaN where a reward does not apply.
    """
    row = _weighed(differences, np.ones((1, differences.shape[1])))[0]
    figures = dict(zip(FIGURES, row.tolist(), strict=True))
    return figures | {WORST: min(figures[reward] for reward in REWARDS)}


def with_intervals(seeds: list[np.ndarray]) -> dict[str, Interval]:
    """Return the mean figures over seeds; the bootstrap draws seeds with replacement, and prompts in each.

    The worst reward is the one whose mean over all seeds is least, in every resample.
    """
    random = np.random.default_rng(0)
    rows = [measure(seed) for seed in seeds]
    means = np.array([np.mean([row[key] for row in rows]) for key in FIGURES])
    drawn = []
    for seed in seeds:
        n = seed.shape[1]
        drawn.append(_weighed(seed, random.multinomial(n, np.full(n, 1 / n), RESAMPLES)))
    chosen = random.integers(0, len(seeds), (RESAMPLES, len(seeds)))
    resampled = np.stack(drawn)[chosen, np.arange(RESAMPLES)[:, None]].mean(axis=1)
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    intervals = {
        key: Interval(*map(float, figure))
        for key, figure in zip(FIGURES, zip(means, low, high, strict=True), strict=True)
    }
    return intervals | {WORST: min((intervals[reward] for reward in REWARDS), key=lambda gain: gain.mean)}


def _weighed(differences: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the `FIGURES` of a seed [R, K + 3], with every prompt taken as often as `counts` [R, n] says."""
    applies = ~np.isnan(differences)
    values = np.where(applies, differences, 0.0)
    gains = counts @ values.T / (counts @ applies.T)
    shares = counts @ np.stack(changed_jointly(values, applies)).T / differences.shape[1]
    return np.concatenate([gains, gains.mean(axis=1, keepdims=True), shares], axis=1)


def _share(facts: list[dict[str, Any]], count: str, total: str) -> float | None:
    of = sum(fact.get(total, 0) for fact in facts)
    return sum(fact[count] for fact in facts) / of if of else None


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
