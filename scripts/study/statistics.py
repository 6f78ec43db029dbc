"""Summarise the study: gains over the base model with bootstrap intervals, and the balance's conduct."""

import json
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from marble_cli.metrics.history import read_history
from scripts.study.cells import BASE, CELLS, REWARDS

RESAMPLES = 4000
COMPOSITE = "composite"

Rows = list[dict[str, Any]]  # training metrics of a run, one dictionary per step


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval, over seeds and over each seed's prompts."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} … {self.high:+.3f})"

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Cell:
    """A method over its seeds.

    Attributes:
        name: of the method.
        seeds: how many are finished.
        gains: by reward, and composite: trained minus base, in standard deviations of the base.
        raw: by reward, trained minus base in the reward's own unit.
        worst: the gain of the reward that gained least.
        all_up: seeds in which every reward gained.
        negative: share of the measured steps whose direction pushed a reward down.
        measured: steps that measured every reward's gradient.
        between: share of the refreshes before which the cached weights would have pushed a reward down.
        images_per_second: speed without other work on the machine.
    """

    name: str
    seeds: int
    gains: dict[str, Interval]
    raw: dict[str, float]
    worst: Interval
    all_up: int
    negative: float | None
    measured: int
    between: float | None
    images_per_second: float | None

    def as_json(self) -> dict[str, Any]:
        """Return the figures and the method's overrides for results.json."""
        gains = {name: [value.mean, value.low, value.high] for name, value in self.gains.items()}
        return {
            "seeds": self.seeds,
            "gains": gains,
            "worst": [self.worst.mean, self.worst.low, self.worst.high],
            "raw": self.raw,
            "seeds_with_all_up": self.all_up,
            "negative_cosine_share": self.negative,
            "measured_steps": self.measured,
            "negative_between_refreshes": self.between,
            "images_per_second": self.images_per_second,
            "overrides": CELLS[self.name],
        }


def base_statistics(directory: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Return every reward's mean and standard deviation on the base model, over all seeds."""
    paths = sorted(directory.glob(f"{BASE}-[0-9]*/scores.json"))
    rows = [json.loads(path.read_text()) for path in paths]
    scores = {reward: [v for row in rows for v in row[reward] if v is not None] for reward in REWARDS}
    means = {reward: float(np.mean(values)) for reward, values in scores.items()}
    return means, {reward: float(np.std(values)) for reward, values in scores.items()}


def differences(directory: Path, name: str) -> list[dict[str, np.ndarray]]:
    """Return trained minus base scores by reward, one dictionary per finished seed.

    Prompts and noise are the same on both sides.
    """
    seeds = []
    for path in sorted(directory.glob(f"{name}-[0-9]*/scores.json")):
        base = directory / path.parent.name.replace(name, BASE) / "scores.json"
        trained, start = json.loads(path.read_text()), json.loads(base.read_text())
        pairs = {reward: zip(trained[reward], start[reward], strict=True) for reward in REWARDS}
        seeds.append(
            {
                reward: np.array([a - b for a, b in both if a is not None and b is not None])
                for reward, both in pairs.items()
            }
        )
    return seeds


def resample(seeds: list[dict[str, np.ndarray]], unit: dict[str, float]) -> np.ndarray:
    """Bootstrap the mean gains: draw seeds with replacement, and prompts within each.

    Args:
        seeds: differences by reward.
        unit: by reward, what to divide them by.

    Returns:
        [RESAMPLES, K] float64.
    """
    random = np.random.default_rng(0)
    means = np.empty((len(seeds), RESAMPLES, len(REWARDS)))
    for s, seed in enumerate(seeds):
        for k, reward in enumerate(REWARDS):
            values = seed[reward] / unit[reward]
            for r in range(RESAMPLES):
                means[s, r, k] = values[random.integers(0, len(values), len(values))].mean()
    chosen = random.integers(0, len(seeds), (RESAMPLES, len(seeds)))
    resampled: np.ndarray = means[chosen, np.arange(RESAMPLES)[:, None]].mean(axis=1)
    return resampled


def interval(mean: float, resampled: np.ndarray) -> Interval:
    """Return `mean` with the 95 % interval of its resampled values."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(mean, float(low), float(high))


def summarise(directory: Path, name: str, unit: dict[str, float]) -> Cell | None:
    """Summarise a method over its finished seeds; return None if there are none."""
    seeds = differences(directory, name)
    if not seeds:
        return None
    raw = {reward: float(np.mean([seed[reward].mean() for seed in seeds])) for reward in REWARDS}
    gains = np.array([raw[reward] / unit[reward] for reward in REWARDS])
    resampled = resample(seeds, unit)
    intervals = {reward: interval(float(gains[k]), resampled[:, k]) for k, reward in enumerate(REWARDS)}
    intervals[COMPOSITE] = interval(float(gains.mean()), resampled.mean(axis=1))
    files = sorted(directory.glob(f"{name}-[0-9]*/run*/metrics.jsonl"))
    runs = [read_history(path.parent).train for path in files]
    rows = [row for run in runs for row in run]
    lowest = lowest_cosines(rows)
    # Steps that mix advantages do not follow the cached weights.
    follows_cache = "balance.amortize=advantage" not in CELLS[name]
    cached = [down for run in runs for down in pushed_down_by_cache(run)] if follows_cache else []
    return Cell(
        name=name,
        seeds=len(seeds),
        gains=intervals,
        raw=raw,
        worst=intervals[REWARDS[int(gains.argmin())]],
        all_up=sum(all(seed[reward].mean() > 0 for reward in REWARDS) for seed in seeds),
        negative=float(np.mean([low < 0 for low in lowest])) if lowest else None,
        measured=len(lowest),
        between=float(np.mean(cached)) if cached else None,
        images_per_second=undisturbed_speed(rows),
    )


def lowest_cosines(rows: Rows) -> list[float]:
    """Return the smallest cosine of direction and reward gradient, for every step that logs more than one."""
    prefix = "balance/cosine/"
    cosines = [[value for key, value in row.items() if key.startswith(prefix)] for row in rows]
    return [min(values) for values in cosines if len(values) > 1]


def pushed_down_by_cache(rows: Rows) -> list[bool]:
    """Tell per refresh after amortised steps whether the cached weights would have pushed a reward down.

    The cached weights are those of the amortised steps before the refresh; the gradients are the refresh's.
    """
    results = []
    for before, row in pairwise(rows):
        norms = np.array([row.get(f"balance/grad_norm/{name}", np.nan) for name in REWARDS])
        weights = np.array([before.get(f"balance/weight/{name}", np.nan) for name in REWARDS])
        if before["balance/refresh"] or not row["balance/refresh"] or np.isnan(norms * weights).any():
            continue
        cosines = np.eye(len(REWARDS))
        for (k, one), (j, other) in combinations(enumerate(REWARDS), 2):
            cosines[k, j] = cosines[j, k] = row.get(f"balance/pairwise_cosine/{one}/{other}", np.nan)
        lowest = (cosines @ (weights * norms)).min()
        results += [bool(lowest < 0)] if np.isfinite(lowest) else []
    return results


def undisturbed_speed(rows: Rows) -> float | None:
    """Estimate images per second on an otherwise idle machine; None without steps.

    Takes the tenth percentile of the seconds of refreshes and of other steps.
    """
    if not rows:
        return None
    kinds = [[row["time/step"] for row in rows if row["balance/refresh"] == refresh] for refresh in (0, 1)]
    seconds = sum(len(times) * np.quantile(times, 0.1) for times in kinds if times) / len(rows)
    images = rows[0]["throughput/images_per_second"] * rows[0]["time/step"]
    return float(images / seconds)
