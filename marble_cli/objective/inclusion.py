"""Draw images with known probabilities, more of those that say much, so that weighed sums are unbiased.

An image is drawn with probability pi_i, and then weighs 1 / pi_i. The expectation of the weighed sum of any
terms of the images is then their plain sum (Horvitz and Thompson, A generalization of sampling without
replacement, JASA 47, 1952), whatever the terms.
"""

import torch
from torch import Tensor


def image_signal(optimality: Tensor, applicable: Tensor, candidates: Tensor) -> Tensor:
    """Return the size of what each image says, in which every reward has the same total.

    It is sqrt(sum_k b_ki^2 / sum_j b_kj^2 + 1 / n) with b_ki = |r_ki - 1/2|. If the gradients of P_i - N_i
    are equally long, and images are drawn independently, probabilities in proportion to it minimise the sum
    of the rewards' relative variances. The shared term and the KL term count as one more reward, of which all
    images say the same. So no candidate has size zero.

    Args:
        optimality: [K, n] r_ki; the value is ignored where not applicable.
        applicable: [K, n] bool.
        candidates: [n] bool, n of them true.

    Returns:
        [n] float64, zero for other images.
    """
    squares = torch.where(applicable & candidates, optimality.double() - 0.5, 0.0).square()
    total = squares.sum(1, keepdim=True)
    shares = (squares / total.where(total > 0, 1.0)).sum(0) + 1.0 / candidates.sum()
    return shares.sqrt() * candidates


def inclusion_probabilities(sizes: Tensor, count: int) -> Tensor:
    """Return probabilities [n] in proportion to sizes, at most 1, whose sum is `count`.

    Args:
        sizes: [n] float64, at least `count` of them above zero.
        count: images to draw.
    """
    certain = torch.zeros_like(sizes, dtype=torch.bool)
    while True:
        rest = sizes.masked_fill(certain, 0.0)
        drawn = rest * ((count - certain.sum()) / rest.sum().clamp(min=torch.finfo(sizes.dtype).tiny))
        if not (drawn > 1).any():
            return drawn.masked_fill(certain, 1.0)
        certain |= drawn > 1


def draw_systematically(probabilities: Tensor, start: float) -> Tensor:
    """Draw images at equal distances along the sum of their probabilities.

    Thus neighbours, the images of a prompt, get about their share in every draw, not only in the mean.

    Args:
        probabilities: [n] float64 in [0, 1], of a whole sum.
        start: the place of the first draw, in [0, 1); drawn evenly, image i has probability i.

    Returns:
        [n] bool, as many true as the sum says.

    Source: Madow, On the theory of systematic sampling II, Annals of Mathematical Statistics 20 (1949).
    """
    ends = torch.minimum(probabilities.cumsum(0), probabilities.sum().round())
    passed = (ends - start).ceil().clamp(min=0)
    drawn: Tensor = passed.diff(prepend=passed.new_zeros(1)) > 0
    return drawn
