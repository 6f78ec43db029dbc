"""Choose learning rates from the tuning cells."""

import math
from collections.abc import Mapping

import numpy as np

from scripts.study.cells import SPECIALISTS, Cell, tuning_cells
from scripts.study.scores import Folders
from scripts.study.statistics import COMPOSITE, Summary, base_unit, summarise

Curve = Mapping[float, Summary]  # by learning rate


def tuning_curve(folders: Folders, budget: str, method: str) -> Curve:
    """Summarise the finished tuning cells of a method, by learning rate."""
    unit = base_unit(folders)
    found = {cell.rate: summarise(folders, [cell], unit) for cell in tuning_cells(budget, method)}
    return {rate: summary for rate, summary in found.items() if summary}


def next_cells(curve: Curve, budget: str, method: str) -> list[Cell]:
    """Return the tuning cells to run next: neighbours of the best rate so far, at first one in the middle.

    None are left once both neighbours of the best rate are finished: the method is tuned.
    """
    grid = tuning_cells(budget, method)
    if not curve:
        return [grid[len(grid) // 2]]
    best = [cell.rate for cell in grid].index(best_rate(curve))
    return [cell for cell in grid[max(best - 1, 0) : best + 2] if cell.rate not in curve]


def best_rate(curve: Curve) -> float:
    """Return the learning rate with the highest mean gain, for a specialist the mean gain of its reward.

    Args:
        curve: of one method, with the tuning seed.
    """
    method = next(iter(curve.values())).cell.method
    figure = SPECIALISTS.get(method, COMPOSITE)
    return max(curve, key=lambda rate: curve[rate].figures[figure].mean)


def rate_at_drift(curve: Curve, drift: float) -> float:
    """Return the learning rate at which a method drifts as far from the base model as `drift`.

    Interpolates the logarithms linearly, within the rates that were tried, and rounds to two digits.

    Args:
        curve: of one method, with the tuning seed.
        drift: of the method that the others are compared with.
    """
    rates = sorted(curve)
    drifts = np.maximum.accumulate([curve[rate].drift for rate in rates])  # higher rates drift further
    found = np.interp(math.log(drift), np.log(drifts), np.log(rates))
    return float(f"{math.exp(found):.2g}")
