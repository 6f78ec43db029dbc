"""Rescale cotangents for backward passes in float16, without waiting for the device."""

import torch
from torch import Tensor

from marble_cli.distributed.layout import Layout

LARGEST = 2.0**-4  # of a cotangent: gradients, which are sums over many tokens, must not overflow float16
EXPONENT = 0x7F800000  # the bits of a float32 that hold its exponent


def rescale_cotangent(cotangent: Tensor, dtype: torch.dtype, layout: Layout) -> tuple[Tensor, Tensor]:
    """Rescale a cotangent into float16's range; return it and the factor [] that undoes the scaling.

    A mean over millions of numbers has small derivatives, most of which would be zero in float16. The factor
    is a power of two, so that float32 changes in its exponents only. Sharded ranks sum their gradients before
    the factor is applied, so all of them take the factor of the largest cotangent. Types other than float16
    have the range of float32; for them, and for a cotangent that is zero or not finite, the factor is 1.

    Args:
        cotangent: float32 if `dtype` is float16.
        dtype: that the transformer computes in.
        layout: of the ranks.
    """
    one = cotangent.new_ones(())
    if dtype is not torch.float16:
        return cotangent, one
    largest = cotangent.abs().max()
    if layout.sharded:
        largest = layout.ranks.all_reduce_max(largest)
    # Without its mantissa a float32 is the power of two below it, and infinite where it is not a number.
    factor = (largest.view(torch.int32) & EXPONENT).view(torch.float32) / LARGEST
    factor = torch.where((factor > 0) & factor.isfinite(), factor, one)
    return cotangent / factor, factor
