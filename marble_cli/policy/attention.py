"""Choose a GPU's attention kernels: cuDNN's draw pictures, and never take a gradient.

cuDNN's forward pass is the fastest there is on a Hopper GPU, but its backward pass returns gradients that are
not numbers (torch 2.11 to 2.13: for some lengths and logits of masked attention, pytorch/pytorch#196678; and
seen here, now and then, on a small FLUX without masks). Flash and memory-efficient attention take its place.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.backends.cuda import cudnn_sdp_enabled, enable_cudnn_sdp

ALLOWED = cudnn_sdp_enabled()  # as the process began


def avoid_cudnn_attention() -> None:
    """Disable cuDNN's attention in this process: gradient checkpointing computes outside every context."""
    enable_cudnn_sdp(False)


@contextmanager
def fastest_attention() -> Iterator[None]:
    """Enable cuDNN's attention inside the context if no gradient is taken there, and the user allows it."""
    before = cudnn_sdp_enabled()
    enable_cudnn_sdp(ALLOWED and not torch.is_grad_enabled())
    try:
        yield
    finally:
        enable_cudnn_sdp(before)
