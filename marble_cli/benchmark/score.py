"""Aggregate a reward's scores of a benchmark as the protocol says."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from marble_cli.config.benchmark import Average
from marble_cli.evaluate.statistics import group_mean_interval, paired_interval


@dataclass(frozen=True)
class Score:
    """A score with its 95 % bootstrap interval over prompts, from `n` scored images; None without any.

    `groups` has the scores of each group of prompts, if there are several.
    """

    n: int
    score: float | None = None
    low: float | None = None
    high: float | None = None
    groups: dict[str, "Score"] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the score as JSON holds it."""
        own: dict[str, Any] = {"score": self.score, "interval": [self.low, self.high], "n": self.n}
        return own | {"groups": {name: score.to_json() for name, score in self.groups.items()}}


def aggregate(
    values: Sequence[Sequence[float | None]], groups: Sequence[str], average: Average, unit: float = 1.0
) -> Score:
    """Aggregate scores.

    Args:
        values: of each prompt the scores of its images; None where the reward gave none.
        groups: the group of each prompt.
        average: what the score is the mean of. In a mean over groups, a group without a score has no part.
        unit: factor of every score.
    """
    rows = [
        (value * unit, place, groups[place])
        for place, images in enumerate(values)
        for value in images
        if value is not None
    ]
    if not rows:
        return Score(0)
    numbers, prompts, names = (np.array(column) for column in zip(*rows, strict=True))
    known = [name for name in dict.fromkeys(groups) if (names == name).any()]
    parts = {name: _mean(numbers[names == name], prompts[names == name]) for name in known}
    if average is Average.groups:
        mean = float(np.mean([part.score for part in parts.values()]))
        whole = Score(len(rows), mean, *group_mean_interval(numbers, prompts, names))
    else:
        whole = _mean(numbers, prompts)
    return Score(whole.n, whole.score, whole.low, whole.high, parts if len(parts) > 1 else {})


def _mean(values: np.ndarray, prompts: np.ndarray) -> Score:
    return Score(len(values), float(values.mean()), *paired_interval(values, prompts))
