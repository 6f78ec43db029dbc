"""Open the KL term for the images that the trained rewards rank higher than the watched ones do.

An image that is ranked alike by both is good in either's eyes, and pulling it back to the base model costs
progress. One that only the trained rewards like may have been made to please them.
"""

import torch
from torch import Tensor

ROUNDING = 1e-9  # win rates are fractions of few images, so those that differ, differ by far more


def open_gate(
    trained: Tensor, trained_applies: Tensor, watched: Tensor, watched_applies: Tensor, groups: Tensor
) -> Tensor:
    """Return [n] float64, 1 for the images that the KL term acts on, and 0 for the others.

    The disagreement on an image is the mean of its win rates in the trained rewards minus that in the watched
    rewards, each over the rewards that score it. The gate is open where that is above 0. Without a trained or
    without a watched score there is nothing to compare, and the gate is open, as if there were none.

    Args:
        trained: [K, n] scores of the trained rewards; a value is ignored where not applicable.
        trained_applies: [K, n] bool.
        watched: [J, n] scores of the watched rewards.
        watched_applies: [J, n] bool.
        groups: [n] int64, the prompt of each image.

    Source: arXiv 2512.24138, eq. 7. There, win rates are over a whole batch, one reward is trained, and the
    gate is open for about a tenth of the images, those of the highest disagreement. Comparing within groups,
    the mean over trained rewards, ties and missing scores are this project's.
    """
    sides = (trained, trained_applies), (watched, watched_applies)
    ours, theirs = (_mean(win_rates(values, applies, groups), applies) for values, applies in sides)
    compared = trained_applies.any(0) & watched_applies.any(0)
    return (~compared | (ours - theirs > ROUNDING)).double()


def win_rates(values: Tensor, applies: Tensor, groups: Tensor) -> Tensor:
    """Return [K, n] float64, the share of its group's other scored images that an image outscores.

    A tie counts one half, as does being the only one scored. Zero where not applicable.

    Args:
        values: [K, n] scores; a value is ignored where not applicable.
        applies: [K, n] bool.
        groups: [n] int64, the prompt of each image.
    """
    neighbours = (groups[:, None] == groups).fill_diagonal_(False)
    rows = []
    for row, scored in zip(values, applies, strict=True):
        others = neighbours & scored
        wins = ((row[:, None] > row) & others).sum(1) + 0.5 * ((row[:, None] == row) & others).sum(1)
        count = others.sum(1)
        rate = torch.where(count > 0, wins.double() / count.clamp(min=1), 0.5)
        rows.append(torch.where(scored, rate, 0.0))
    return torch.stack(rows)


def _mean(rates: Tensor, applies: Tensor) -> Tensor:
    """Return [n], the mean over the rewards that score each image."""
    return rates.sum(0) / applies.sum(0).clamp(min=1)
