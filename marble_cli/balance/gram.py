"""Compute Gram matrices: the inner products of K gradients, the only input of a balance."""

import torch
from torch import Tensor

CHUNK = 1 << 18


def gram(gradients: Tensor) -> Tensor:
    """Compute the inner products of K gradients in float64, without a float64 copy of all of them.

    The sum runs over parameters, so the matrices of disjoint shards of the parameters add up to the whole
    matrix.

    Args:
        gradients: [K, P] of any floating dtype, on any device; rows may be non-finite.

    Returns:
        [K, K] float64 on the CPU, exactly symmetric; non-finite in the rows and columns of non-finite
        gradients.
    """
    total = gradients.new_zeros(len(gradients), len(gradients), dtype=torch.float64)
    for chunk in torch.split(gradients.detach(), CHUNK, dim=1):
        exact = chunk.double()
        total += exact @ exact.T
    return ((total + total.T) / 2).cpu()


def normalise(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Gram matrix of the unit gradients, and the norms that were divided out.

    Args:
        gram: [K, K] float64 with a positive, finite diagonal.

    Returns:
        [K, K] float64 with a diagonal of exactly one, and [K] float64 norms.
    """
    norms = gram.diagonal().sqrt()
    unit = gram / norms[:, None] / norms
    unit = unit.clone()
    unit.fill_diagonal_(1.0)
    return unit, norms
