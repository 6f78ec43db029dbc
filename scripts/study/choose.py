"""Choose learning rates from the tuning cells."""

import math
from collections.abc import Mapping

import numpy as np

from scripts.study.cells import SPECIALISTS, tuning_cells
from scripts.study.scores import Folders
from scripts.study.statistics import COMPOSITE, Summary, base_unit, summarise

Curve = Mapping[float, Summary]  # by learning rate


def tuning_curve(folders: Folders, budget: str, method: str) -> Curve:
    """Summarise the finished tuning cells of a method, by learning rate."""
    unit, cells = base_unit(folders), tuning_cells(budget, method)
    grid = dict.fromkeys(cell.rate for cell in cells)
    found = {rate: summarise(folders, [c for c in cells if c.rate == rate], unit) for rate in grid}
    return {rate: summary for rate, summary in found.items() if summary}


def is_tuned(curve: Curve, budget: str, method: str) -> bool:
    """Tell whether all tuning cells of a method are finished."""
    return sum(summary.seeds for summary in curve.values()) == len(tuning_cells(budget, method))


def best_rate(curve: Curve) -> float:
    """Return the learning rate with the highest mean gain, for a specialist the mean gain of its reward.

    Args:
        curve: of one method, over the tuning seeds.
    """
    method = next(iter(curve.values())).cell.method
    figure = SPECIALISTS.get(method, COMPOSITE)
    return max(curve, key=lambda rate: curve[rate].figures[figure].mean)


def rate_at_drift(curve: Curve, drift: float) -> float:
    """Return the learning rate at which a method drifts as far from the base model as `drift`.

    Interpolates the logarithms linearly, within the rates that were tried, and rounds to two digits.

    Args:
        curve: of one method, over the tuning seeds.
        drift: of the method that the others are compared with.
    """
    rates = sorted(curve)
    drifts = np.maximum.accumulate([curve[rate].drift for rate in rates])  # higher rates drift further
    found = np.interp(math.log(drift), np.log(drifts), np.log(rates))
    return float(f"{math.exp(found):.2g}")
