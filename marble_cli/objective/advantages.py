"""Compare each image with the others of its prompt, per reward: advantages and optimalities.

A reward that does not apply to an image has `applicable` false there, and that mask alone is read: a value
outside it may be anything, NaN included.
"""

import torch
from torch import Tensor

from marble_cli.config.enums import AdvantageStd, Reduce
from marble_cli.objective.group_signal import scores_differ

GLOBAL = AdvantageStd["global"]  # `global` is a keyword


def advantages(
    rewards: Tensor,
    applicable: Tensor,
    groups: Tensor,
    *,
    std: AdvantageStd = GLOBAL,
    epsilon: float = 1e-4,
) -> Tensor:
    """Centre every reward on its prompt's group and divide it by a standard deviation.

    Args:
        rewards: [K, n] scores of the whole step; the value is ignored where not applicable.
        applicable: [K, n] bool, true where reward k scored image i.
        groups: [n] int64, the prompt that image i was made for.
        std: `global` divides by the deviation over all applicable images of the step, `group` by the group's
            own.
        epsilon: added to the deviation.

    Returns:
        [K, n] float64; zero where not applicable and in groups whose scores are all equal.

    Source: arXiv 2402.03300, section 4.1.2, for each reward separately (arXiv 2605.06507).
    """
    rewards = torch.where(applicable, rewards.double(), 0.0)
    group = torch.unique(groups, return_inverse=True)[1].to(rewards.device).expand_as(applicable)
    # The mean of equal scores is rounded, so that centring them would leave noise in the place of zeros.
    differs = applicable & scores_differ(rewards, applicable, group).gather(1, group)
    centred = torch.where(differs, rewards - _mean(rewards, applicable, group), 0.0)
    if std is GLOBAL:
        everyone = torch.zeros_like(group)
        spread = torch.where(applicable, rewards - _mean(rewards, applicable, everyone), 0.0)
        deviation = _mean(spread.square(), applicable, everyone).sqrt()
    elif std is AdvantageStd.group:
        deviation = _mean(centred.square(), applicable, group).sqrt()
    else:
        raise ValueError(f"std: expected a member of AdvantageStd, got {std!r}")
    return centred / (deviation + epsilon)


def optimality(advantage: Tensor, clip: float) -> Tensor:
    """Map an advantage to the probability of being optimal, r = clip(A / (2 A_max) + 1/2, 0, 1).

    Args:
        advantage: any shape, floating.
        clip: A_max, the advantage at which r saturates.

    Returns:
        The same shape and dtype, in [0, 1].

    Source: arXiv 2509.16117.
    """
    return (advantage / (2.0 * clip) + 0.5).clamp(0.0, 1.0)


def weighted_sum(
    rewards: Tensor,
    applicable: Tensor,
    weights: Tensor,
    groups: Tensor | None = None,
    *,
    reduce: Reduce = Reduce.sum,
) -> tuple[Tensor, Tensor]:
    """Scalarise raw rewards, the baseline: one reward from the weighted ones that apply to an image.

    A reward of weight zero is left out, as if there were none.

    Args:
        rewards: [K, n]; the value is ignored where not applicable.
        applicable: [K, n] bool.
        weights: [K].
        groups: [n] int64; if given, an image that lacks a score which others of its group have is left out.
            In a sum the missing score would act like a score of zero, and a mean without it has another
            scale.
        reduce: `sum` is sum_k w_k m_ki R_ki (arXiv 2605.06507); `mean` divides that by sum_k w_k m_ki, as the
            code published with it does.

    Returns:
        [1, n] float64 rewards and the [1, n] bool mask of the images that have one.
    """
    applicable = _with_weight(applicable, weights)
    total, scored = _weighted(rewards, applicable, weights), applicable.any(0, keepdim=True)
    if reduce is Reduce.mean:
        weight = (applicable.double() * weights.to(total)[:, None]).sum(0, keepdim=True)
        total = total / weight.where(scored, torch.ones_like(weight))
    elif reduce is not Reduce.sum:
        raise ValueError(f"reduce: expected a member of Reduce, got {reduce!r}")
    if groups is not None:
        group = torch.unique(groups, return_inverse=True)[1].to(rewards.device).expand_as(applicable)
        in_group = _mean(applicable.double(), torch.ones_like(applicable), group) > 0
        scored = scored & ~(in_group & ~applicable).any(0, keepdim=True)
    return torch.where(scored, total, 0.0), scored


def advantage_sum(
    advantage: Tensor, applicable: Tensor, weights: Tensor, *, epsilon: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """Sum normalised rewards and normalise the sum over the step, so that its scale does not grow with K.

    A reward of weight zero is left out, as if there were none.

    The sum has mean zero over each group as its terms have, so dividing by its deviation is all that is left.

    Args:
        advantage: [K, n] float64, zero where not applicable.
        applicable: [K, n] bool.
        weights: [K].
        epsilon: added to the deviation.

    Returns:
        [1, n] float64 advantages and the [1, n] bool mask of the images that have one.

    Source: GDPO, arXiv 2601.05242.
    """
    applicable = _with_weight(applicable, weights)
    total = _weighted(advantage, applicable, weights)
    scored = applicable.any(0, keepdim=True)
    deviation = _mean(total.square(), scored, torch.zeros_like(scored, dtype=torch.int64)).sqrt()
    return total / (deviation + epsilon), scored


def effective_samples(advantage: Tensor) -> float:
    """Count the images that a reward's advantages rest on: (sum |A|)^2 / sum A^2.

    It is n if all |A| are equal, and 0 if all are zero.

    Args:
        advantage: [n] of the images that the reward applies to.

    Source: Kish, Survey Sampling (1965), section 11.7.
    """
    square = advantage.square().sum()
    return float(advantage.abs().sum().square() / square) if square > 0 else 0.0


def _with_weight(applicable: Tensor, weights: Tensor) -> Tensor:
    """Return [K, n] bool, false also for rewards of weight zero."""
    return applicable & (weights > 0.0).to(applicable.device)[:, None]


def _weighted(values: Tensor, applicable: Tensor, weights: Tensor) -> Tensor:
    """Return [1, n] float64, the sum over the applicable k of weights_k values_ki."""
    terms = torch.where(applicable, values.double(), 0.0) * weights.to(values.device).double()[:, None]
    return terms.sum(0, keepdim=True)


def _mean(values: Tensor, applicable: Tensor, group: Tensor) -> Tensor:
    """Return [K, n], the mean of a reward over the applicable images of each image's group."""
    slots = values.new_zeros(len(values), int(group.max()) + 1 if group.numel() else 1)
    member = applicable.to(values.dtype)
    count = slots.scatter_add(1, group, member).clamp(min=1.0)
    return (slots.scatter_add(1, group, values * member) / count).gather(1, group)
