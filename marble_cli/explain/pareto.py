"""Find how a run moved any two of its rewards together on held-out prompts."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from marble_cli.explain.analysis import Pair
from marble_cli.metrics.history import History, series

PANELS = 15  # pairs of rewards drawn at most: all of six rewards


def chosen_pairs(rewards: Sequence[str], pairs: Sequence[Pair]) -> tuple[list[tuple[str, str]], str | None]:
    """Choose the pairs of rewards to draw, in the run's order, and a title if they are not all.

    Args:
        rewards: the names of the rewards.
        pairs: the cosines between their gradients, if known; the most opposed pairs are chosen first.
    """
    order = list(combinations(rewards, 2))
    if len(order) <= PANELS:
        return order, None
    means = {(pair.first, pair.second): pair.cosine.mean for pair in pairs}
    kept = sorted(order, key=lambda pair: means.get(pair, 1.0))[:PANELS]
    which = f"{PANELS} most opposed" if pairs else f"first {PANELS}"
    return [pair for pair in order if pair in kept], f"the {which} of {len(order)} pairs"


def trajectory(history: History, first: str, second: str) -> tuple[list[int], np.ndarray]:
    """Return the steps of the E evaluations that have both held-out means, and these means [E, 2]."""
    one, other = (
        dict(zip(*series(history.held_out, f"reward/{name}/mean"), strict=True)) for name in (first, second)
    )
    steps = [step for step in one if step in other]
    return steps, np.array([(one[step], other[step]) for step in steps]).reshape(-1, 2)


def improvements(points: np.ndarray) -> np.ndarray:
    """Count how many of the two rewards each move improved: int [E - 1] for points [E, 2]."""
    counts: np.ndarray = (np.diff(points, axis=0) > 0).sum(axis=1)
    return counts
