"""Advantages: how much better an image is than its siblings of the same prompt, one estimator a reward."""

import torch
from torch import Tensor

from marble_cli.errors import ConfigError


def advantages(
    rewards: Tensor, applicable: Tensor, groups: Tensor, *, std: str = "global", epsilon: float = 1e-4
) -> Tensor:
    """Centre every reward on its prompt's group and divide it by a standard deviation.

    Args:
        rewards: [K, n] scores of the whole step; the value is ignored where not applicable.
        applicable: [K, n] bool, true where reward k scored image i.
        groups: [n] int64, the prompt that image i was made for.
        std: "global" divides by the deviation over all applicable images of the step, "group" by the group's
            own.
        epsilon: added to the deviation.

    Returns:
        [K, n] float64; zero where not applicable and in groups whose scores are all equal.

    Raises:
        ConfigError: `std` is neither "global" nor "group".

    Source: arXiv 2402.03300, section 4.1.2, for every reward apart (arXiv 2605.06507).
    """
    rewards = torch.where(applicable, rewards.double(), 0.0)
    group = torch.unique(groups, return_inverse=True)[1].to(rewards.device).expand_as(applicable)
    centred = torch.where(
        applicable & ~_equal(rewards, applicable, group), rewards - _mean(rewards, applicable, group), 0.0
    )
    match std:
        case "global":
            everyone = torch.zeros_like(group)
            spread = torch.where(applicable, rewards - _mean(rewards, applicable, everyone), 0.0)
            deviation = _mean(spread.square(), applicable, everyone).sqrt()
        case "group":
            deviation = _mean(centred.square(), applicable, group).sqrt()
        case _:
            raise ConfigError(f"advantage.std: expected 'global' or 'group', got {std!r}")
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
    rewards: Tensor, applicable: Tensor, weights: Tensor, groups: Tensor | None = None, *, reduce: str = "sum"
) -> tuple[Tensor, Tensor]:
    """Scalarise raw rewards, the baseline: one reward from the weighted ones of those that apply.

    Args:
        rewards: [K, n]; the value is ignored where not applicable.
        applicable: [K, n] bool.
        weights: [K].
        groups: [n] int64; when given, an image that lacks a score its group has is left out: in a sum a
            missing score would read as a score of zero, and a mean without it has another scale.
        reduce: "sum" is sum_k w_k m_ki R_ki (arXiv 2605.06507); "mean" divides that by sum_k w_k m_ki, as the
            code published with it does. An image whose applicable rewards all have weight zero has no mean.

    Returns:
        [1, n] float64 rewards and the [1, n] bool mask of the images that have one.

    Raises:
        ConfigError: `reduce` is neither "sum" nor "mean".
    """
    total = _weighted(rewards, applicable, weights)
    scored = applicable.any(0, keepdim=True)
    match reduce:
        case "sum":
            pass
        case "mean":
            weight = (applicable.double() * weights.to(total)[:, None]).sum(0, keepdim=True)
            scored = weight > 0
            total = total / weight.where(scored, torch.ones_like(weight))
        case _:
            raise ConfigError(f"balance.reduce: expected 'sum' or 'mean', got {reduce!r}")
    if groups is not None:
        group = torch.unique(groups, return_inverse=True)[1].to(rewards.device).expand_as(applicable)
        wanted = _mean(applicable.double(), torch.ones_like(applicable), group) > 0
        scored = scored & ~(wanted & ~applicable).any(0, keepdim=True)
    return torch.where(scored, total, 0.0), scored


def advantage_sum(
    advantage: Tensor, applicable: Tensor, weights: Tensor, *, epsilon: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """Sum normalised rewards and normalise the sum over the step, so that its scale does not grow with K.

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
    total = _weighted(advantage, applicable, weights)
    scored = applicable.any(0, keepdim=True)
    deviation = _mean(total.square(), scored, torch.zeros_like(scored, dtype=torch.int64)).sqrt()
    return total / (deviation + epsilon), scored


def effective_samples(advantage: Tensor) -> float:
    """How many images a reward's advantages speak for: (sum |A|)^2 / sum A^2, n where all are equal, 0 where all vanish.

    Args:
        advantage: [n] of the images that the reward applies to.

    Source: Kish, Survey Sampling (1965), section 11.7.
    """
    square = advantage.square().sum()
    return float(advantage.abs().sum().square() / square) if square > 0 else 0.0


def _weighted(values: Tensor, applicable: Tensor, weights: Tensor) -> Tensor:
    """[1, n] float64: sum over the applicable k of weights_k values_ki."""
    terms = torch.where(applicable, values.double(), 0.0) * weights.to(values.device).double()[:, None]
    return terms.sum(0, keepdim=True)


def _mean(values: Tensor, applicable: Tensor, group: Tensor) -> Tensor:
    """[K, n]: the mean of a reward over the applicable images of the image's group."""
    slots = values.new_zeros(len(values), int(group.max()) + 1 if group.numel() else 1)
    member = applicable.to(values.dtype)
    count = slots.scatter_add(1, group, member).clamp(min=1.0)
    return (slots.scatter_add(1, group, values * member) / count).gather(1, group)


def _equal(values: Tensor, applicable: Tensor, group: Tensor) -> Tensor:
    """[K, n] bool: the scores of the image's group are all the same; a rounded mean would leave noise."""
    slots = values.new_zeros(len(values), int(group.max()) + 1 if group.numel() else 1)
    low = torch.where(applicable, values, torch.inf)
    high = torch.where(applicable, values, -torch.inf)
    least = slots.scatter_reduce(1, group, low, "amin", include_self=False)
    most = slots.scatter_reduce(1, group, high, "amax", include_self=False)
    return (most <= least).gather(1, group)
