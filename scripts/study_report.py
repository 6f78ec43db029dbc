"""Tables and figures of the study, from the results of `scripts/study.py`.

    python scripts/study_report.py [--directory runs/study] [--output docs/results/study]

Writes results.md, results.json and three pictures. Cells that are not there yet are left out, and counted.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from study import ABLATIONS, BASE, CELLS, METHODS, REWARDS

from marble_cli.metrics.figures import COLORS, STYLE
from marble_cli.metrics.history import open_history

RESAMPLES = 4000
SPECIALISTS = tuple(name for name in METHODS if name.startswith("only_"))
COMPOSITE, WORST = "composite", "worst"


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval, over seeds and over the prompts of each."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} … {self.high:+.3f})"

    @property
    def stands_out(self) -> bool:
        """Zero lies outside."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Cell:
    """One method over its seeds: gains over the base in units of the base's standard deviation, and raw."""

    name: str
    seeds: int
    gains: dict[str, Interval]  # by reward, and composite
    raw: dict[str, float]
    worst: Interval  # of the reward that gained least
    all_up: int  # seeds in which every reward gained
    negative: float | None  # share of the measured steps in which some reward was pushed down
    measured: int
    between: float | None  # the same of the cached weights at the end of every stretch of amortised steps
    images_per_second: float | None


def differences(directory: Path, name: str) -> list[dict[str, np.ndarray]]:
    """Trained minus base by reward, one dictionary a finished seed; the same held-out prompts and noise in all."""
    result = []
    for path in sorted(directory.glob(f"{name}-[0-9]*/scores.json")):
        base = directory / path.parent.name.replace(name, BASE) / "scores.json"
        now, before = json.loads(path.read_text()), json.loads(base.read_text())
        result.append(
            {
                reward: np.array(
                    [
                        a - b
                        for a, b in zip(now[reward], before[reward], strict=True)
                        if a is not None and b is not None
                    ]
                )
                for reward in REWARDS
            }
        )
    return result


def deviations(directory: Path) -> dict[str, float]:
    """Standard deviation of every reward on the base model, over all seeds' held-out images."""
    rows = [json.loads(path.read_text()) for path in sorted(directory.glob(f"{BASE}-[0-9]*/scores.json"))]
    return {
        reward: float(np.std([v for row in rows for v in row[reward] if v is not None])) for reward in REWARDS
    }


def resample(seeds: list[dict[str, np.ndarray]], unit: dict[str, float]) -> np.ndarray:
    """[RESAMPLES, K] gains in units of `unit`: seeds drawn with replacement, and prompts within each."""
    random = np.random.default_rng(0)
    means = np.empty((len(seeds), RESAMPLES, len(REWARDS)))
    for s, seed in enumerate(seeds):
        for k, reward in enumerate(REWARDS):
            values = seed[reward] / unit[reward]
            for r in range(RESAMPLES):
                means[s, r, k] = values[random.integers(0, len(values), len(values))].mean()
    chosen = random.integers(0, len(seeds), (RESAMPLES, len(seeds)))
    drawn: np.ndarray = means[chosen, np.arange(RESAMPLES)[:, None]].mean(axis=1)
    return drawn


def interval(mean: float, drawn: np.ndarray) -> Interval:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(mean, float(low), float(high))


def summarise(directory: Path, name: str, unit: dict[str, float]) -> Cell | None:
    """One method's figures; None where no seed is done."""
    seeds = differences(directory, name)
    if not seeds:
        return None
    raw = {reward: float(np.mean([seed[reward].mean() for seed in seeds])) for reward in REWARDS}
    gains = np.array([raw[reward] / unit[reward] for reward in REWARDS])
    drawn = resample(seeds, unit)
    intervals = {
        reward: interval(float(gains[k]), drawn[:, k]) for k, reward in enumerate(REWARDS)
    } | {COMPOSITE: interval(float(gains.mean()), drawn.mean(axis=1))}  # fmt: skip
    files = sorted(directory.glob(f"{name}-[0-9]*/run*/metrics.jsonl"))
    runs = [open_history(path.parent).train for path in files]
    rows = [row for run in runs for row in run]
    by_advantage = (
        "balance.amortize=advantage" in CELLS[name]
    )  # whose steps go another way than these weights
    cached = [down for run in runs for down in pushed_down_by_cache(run) if not by_advantage]
    lowest = [
        min(cosines)
        for row in rows
        if len(cosines := [value for key, value in row.items() if key.startswith("balance/cosine/")]) > 1
    ]
    return Cell(
        name,
        len(seeds),
        intervals,
        raw,
        intervals[REWARDS[int(gains.argmin())]],
        sum(all(seed[reward].mean() > 0 for reward in REWARDS) for seed in seeds),
        float(np.mean([low < 0 for low in lowest])) if lowest else None,
        len(lowest),
        float(np.mean(cached)) if cached else None,
        speed(rows),
    )


def pushed_down_by_cache(rows: list[dict[str, Any]]) -> list[bool]:
    """At every refresh after amortised steps: whether the weights that these worked with would push a reward down."""
    found = []
    for before, row in pairwise(rows):
        norms = np.array([row.get(f"balance/grad_norm/{name}", np.nan) for name in REWARDS])
        weights = np.array([before.get(f"balance/weight/{name}", np.nan) for name in REWARDS])
        if before["balance/refresh"] or not row["balance/refresh"] or np.isnan(norms * weights).any():
            continue
        cosines = np.eye(len(REWARDS))
        for (k, one), (j, other) in combinations(enumerate(REWARDS), 2):
            cosines[k, j] = cosines[j, k] = row.get(f"balance/pairwise_cosine/{one}/{other}", np.nan)
        lowest = (cosines @ (weights * norms)).min()
        found += [bool(lowest < 0)] if np.isfinite(lowest) else []
    return found


def speed(rows: list[dict[str, Any]]) -> float | None:
    """Images per second when nothing else runs: from the tenth percentile of the times of refreshes and of other steps."""
    if not rows:
        return None
    kinds = [[row["time/step"] for row in rows if row["balance/refresh"] == refresh] for refresh in (0, 1)]
    seconds = sum(len(times) * np.quantile(times, 0.1) for times in kinds if times) / len(rows)
    images = rows[0]["throughput/images_per_second"] * rows[0]["time/step"]
    return float(images / seconds)


def table(cells: list[Cell], *, measured: bool) -> str:
    """A markdown table; gains whose interval excludes zero are bold."""
    heads = ["method", *REWARDS, COMPOSITE, "worst reward", "all five up"]
    heads += ["a reward pushed down", "between refreshes", "images/s"] if measured else []
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for cell in cells:
        row = [f"`{cell.name}`"]
        row += [_bold(cell.gains[reward]) for reward in (*REWARDS, COMPOSITE)]
        row += [_bold(cell.worst), f"{cell.all_up} of {cell.seeds}"]
        if measured:
            row.append("" if cell.negative is None else f"{cell.negative:.0%} of {cell.measured}")
            row.append("" if cell.between is None else f"{cell.between:.0%}")
            row.append("" if cell.images_per_second is None else f"{cell.images_per_second:.0f}")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _bold(value: Interval) -> str:
    half = f"{value.mean:+.2f} ± {(value.high - value.low) / 2:.2f}"
    return f"**{half}**" if value.stands_out else half


def raw_table(cells: list[Cell], base: dict[str, float]) -> str:
    lines = ["| method | " + " | ".join(REWARDS) + " |", "|" + "---|" * (len(REWARDS) + 1)]
    lines.append("| base | " + " | ".join(f"{base[reward]:.3f}" for reward in REWARDS) + " |")
    for cell in cells:
        lines.append(
            f"| `{cell.name}` | " + " | ".join(f"{cell.raw[reward]:+.3f}" for reward in REWARDS) + " |"
        )
    return "\n".join(lines)


def draw_gains(cells: list[Cell], output: Path) -> None:
    """Every method's gain in every reward, with intervals."""
    with plt.rc_context(STYLE):
        columns = (*REWARDS, COMPOSITE)
        figure, axes = plt.subplots(1, len(columns), figsize=(12, 0.3 * len(cells) + 1.2), sharey=True)
        places = np.arange(len(cells))[::-1]
        for panel, column, color in zip(axes, columns, COLORS, strict=False):
            for place, cell in zip(places, cells, strict=True):
                gain = cell.gains[column]
                panel.plot([gain.low, gain.high], [place, place], color=color, lw=1.5, alpha=0.6)
                panel.plot(gain.mean, place, "o", color=color, ms=4.5)
            panel.axvline(0, color="0.6", lw=0.8)
            panel.set_title(column, color=color)
        axes[0].set_yticks(places, [cell.name for cell in cells])
        figure.supxlabel("gain over the base, in its standard deviations (95 % interval)", fontsize=9)
        figure.tight_layout()
        figure.savefig(output)
        plt.close(figure)


def draw_balance(cells: list[Cell], output: Path) -> None:
    """Average against worst reward: up and to the right is better."""
    with plt.rc_context(STYLE):
        figure, panel = plt.subplots(figsize=(6.5, 5))
        placed: list[tuple[float, float]] = []
        for cell in cells:
            ours = cell.name.startswith("marble")
            color = COLORS[1] if ours else "0.35"
            x, y = cell.gains[COMPOSITE], cell.worst
            panel.plot([x.low, x.high], [y.mean, y.mean], color=color, lw=1, alpha=0.4)
            panel.plot([x.mean, x.mean], [y.low, y.high], color=color, lw=1, alpha=0.4)
            panel.plot(x.mean, y.mean, "o", color=color, ms=5)
            crowded = any(abs(x.mean - a) < 0.012 and abs(y.mean - b) < 0.012 for a, b in placed)
            placed.append((x.mean, y.mean))
            panel.annotate(
                cell.name, (x.mean, y.mean), xytext=(-5, -5) if crowded else (5, 4), textcoords="offset points",
                ha="right" if crowded else "left", va="top" if crowded else "bottom", fontsize=7, color=color,
            )  # fmt: skip
        panel.axhline(0, color="0.7", lw=0.8)
        panel.set_xlabel("mean gain of the five rewards (base standard deviations)")
        panel.set_ylabel("gain of the worst reward")
        figure.tight_layout()
        figure.savefig(output)
        plt.close(figure)


def draw_specialists(cells: dict[str, Cell], compared: Sequence[str], output: Path) -> None:
    """How much of what training on one reward alone gives is left when five are trained at once."""
    with plt.rc_context(STYLE):
        figure, panel = plt.subplots(figsize=(8, 3.4))
        width = 0.8 / (len(compared) + 1)
        for place, name in enumerate(["alone", *compared]):
            values = [
                cells[f"only_{reward}" if name == "alone" else name].gains[reward] for reward in REWARDS
            ]
            x = np.arange(len(REWARDS)) + (place - len(compared) / 2) * width
            means = [value.mean for value in values]
            errors = [
                [value.mean - value.low for value in values], [value.high - value.mean for value in values]
            ]  # fmt: skip
            panel.bar(
                x, means, width * 0.9, yerr=errors, label=name, color=COLORS[place], error_kw={"lw": 0.8}
            )
        panel.set_xticks(range(len(REWARDS)), REWARDS)
        panel.axhline(0, color="0.4", lw=0.8)
        panel.set_ylabel("gain (base standard deviations)")
        panel.legend(frameon=False, fontsize=8)
        figure.tight_layout()
        figure.savefig(output)
        plt.close(figure)


def plain(cell: Cell) -> dict[str, Any]:
    gains = {name: [value.mean, value.low, value.high] for name, value in cell.gains.items()}
    return {
        "seeds": cell.seeds, "gains": gains, "worst": [cell.worst.mean, cell.worst.low, cell.worst.high], "raw": cell.raw,
        "seeds_with_all_up": cell.all_up,
        "negative_cosine_share": cell.negative, "measured_steps": cell.measured,
        "negative_between_refreshes": cell.between,
        "images_per_second": cell.images_per_second, "overrides": CELLS[cell.name],
    }  # fmt: skip


def main(directory: Path, output: Path) -> None:
    unit = deviations(directory)
    found = {name: cell for name in CELLS if name != BASE and (cell := summarise(directory, name, unit))}
    wanted = 3 * (len(CELLS) - 1)
    methods = [found[name] for name in METHODS if name in found]
    ablations = [found[name] for name in ("marble_amortised", *ABLATIONS) if name in found]
    base_rows = [json.loads(path.read_text()) for path in directory.glob(f"{BASE}-[0-9]*/scores.json")]
    base = {r: float(np.mean([v for row in base_rows for v in row[r] if v is not None])) for r in REWARDS}
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.json").write_text(
        json.dumps({"unit": unit, "base": base, "cells": {n: plain(c) for n, c in found.items()}}, indent=1)
        + "\n"
    )
    draw_gains(methods, output / "gains.png")
    draw_balance([cell for cell in methods if cell.name not in SPECIALISTS], output / "balance.png")
    compared = [name for name in ("marble", "weighted_sum", "advantage_sum") if name in found]
    if all(name in found for name in SPECIALISTS):
        draw_specialists(found, compared, output / "specialists.png")
    done = sum(cell.seeds for cell in found.values())
    (output / "results.md").write_text(
        f"""# Results of the study

Written by `python scripts/study_report.py` from {done} of {wanted} runs of `make study`. Gains over the base model on held-out prompts,
in units of the base's standard deviation, ± half of a 95 % bootstrap interval over seeds and prompts; bold where the interval
leaves out zero. *Composite*: mean of the five gains. *Worst reward*: the smallest of them. *All five up*: seeds in which every reward's
mean rose. *A reward pushed down*: share of the steps at which every reward's gradient was measured in which the applied direction had a
negative cosine with one of them. *Between refreshes*: share of the refreshes at which the weights that the amortised steps before it
worked with would have pushed one down. Images per second are of runs that shared the machine with others, from the tenth percentile of
their steps' times, and compare roughly; [`make bench`](../bench.md) compares exactly.

## Methods

{table(methods, measured=True)}

![Gain of every method in every reward](gains.png)

![Mean gain against the gain of the worst reward](balance.png)

![What training on one reward alone gives, and what is left of it with five at once](specialists.png)

## Ablations

{table(ablations, measured=True)}

## In the rewards' own units

{raw_table(methods + ablations[1:], base)}
"""
    )
    print(f"{done} of {wanted} runs; {output / 'results.md'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", type=Path, default=Path("runs/study"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/study"))
    options = parser.parse_args()
    main(options.directory, options.output)
