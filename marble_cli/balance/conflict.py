"""Measure conflict in a Gram matrix: between pairs of rewards, and between two directions."""

import torch
from torch import Tensor

from marble_cli.balance.base import active_rewards
from marble_cli.balance.gram import normalise


def pairwise_cosines(gram: Tensor) -> Tensor:
    """Compute the cosines between K gradients.

    Args:
        gram: [K, K] float64.

    Returns:
        [K, K] float64; NaN in the rows and columns of gradients that are zero or not finite.
    """
    active = active_rewards(gram)
    result = torch.full_like(gram, torch.nan)
    if active.any():
        both = active[:, None] & active
        result[both] = normalise(gram[active][:, active])[0].clamp(-1.0, 1.0).flatten()
    return result


def conflict_share(pairwise: Tensor) -> float:
    """Return the share of the pairs of gradients that have a negative cosine; NaN if there is no pair.

    Args:
        pairwise: [K, K] float64 cosines; NaN for gradients without one.
    """
    first, second = torch.triu_indices(len(pairwise), len(pairwise), offset=1)
    pairs = pairwise[first, second]
    pairs = pairs[pairs.isfinite()]
    return float((pairs < 0).double().mean()) if len(pairs) else float("nan")


def agreement(gram: Tensor, one: Tensor, other: Tensor) -> float:
    """Compute the cosine between the directions sum_k one_k g_k and sum_k other_k g_k; NaN if either is zero.

    Args:
        gram: [K, K] float64.
        one: [K] float64 weights, ignored for a gradient that is zero or not finite.
        other: [K] float64, likewise.
    """
    active = active_rewards(gram)
    gram, one, other = gram[active][:, active], one[active], other[active]
    scale = (one @ gram @ one).clamp(min=0).sqrt() * (other @ gram @ other).clamp(min=0).sqrt()
    return float((one @ gram @ other / scale).clamp(-1.0, 1.0)) if scale > 0 else float("nan")
