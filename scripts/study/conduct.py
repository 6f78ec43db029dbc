"""Describe how a run went: how far it drifted, whether it pushed a reward down, and how fast it was."""

from itertools import combinations, pairwise
from typing import Any

import numpy as np

from scripts.study.cells import REWARDS

Rows = list[dict[str, Any]]  # training metrics of a run, one dictionary per step
LAST_STEPS = 10  # over which the drift is averaged


def conduct(rows: Rows) -> dict[str, Any]:
    """Return the figures that the study keeps of a run's training metrics.

    - `drift`: the mean squared distance of trained and frozen velocities over the last steps, times
      `algorithm.kl_coef`, which all cells share.
    - `negative`: steps whose direction pushed a reward down, of `measured` steps.
    - `negative_cached`: refreshes before which the cached weights would have, of `cached` refreshes.
    - `images_per_second`, and `seconds` of all steps.
    """
    lowest, cached = lowest_cosines(rows), pushed_down_by_cache(rows)
    return {
        "drift": float(np.mean([row["loss/kl"] for row in rows[-LAST_STEPS:]])),
        "negative": sum(low < 0 for low in lowest),
        "measured": len(lowest),
        "negative_cached": sum(cached),
        "cached": len(cached),
        "images_per_second": undisturbed_speed(rows),
        "seconds": sum(row["time/step"] for row in rows),
    }


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


def undisturbed_speed(rows: Rows) -> float:
    """Estimate images per second on an otherwise idle machine.

    Takes the tenth percentile of the seconds of refreshes and of other steps.
    """
    kinds = [[row["time/step"] for row in rows if row["balance/refresh"] == refresh] for refresh in (0, 1)]
    seconds = sum(len(times) * np.quantile(times, 0.1) for times in kinds if times) / len(rows)
    images = rows[0]["throughput/images_per_second"] * rows[0]["time/step"]
    return float(images / seconds)
