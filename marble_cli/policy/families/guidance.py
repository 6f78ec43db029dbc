"""Classifier-free guidance as the families' pipelines do it; source: Ho and Salimans, arXiv 2207.12598.

Each takes the velocities [B, C, H, W] float32 with the prompt and with the negative prompt, and the scale that the
pipeline calls by that name.
"""

import torch
from torch import Tensor

from marble_cli.policy.families.latents import pack, unpack


def plainly(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Return v- + s (v+ - v-): s = 1 is the prompt's own velocity. SD3, FLUX.1, Sana."""
    return negative + scale * (positive - negative)


def beyond_positive(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Return v+ + s (v+ - v-): s = 0 is the prompt's own velocity. Z-Image."""
    return positive + scale * (positive - negative)


def with_token_norms(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Return v- + s (v+ - v-), every 2 x 2 patch of it as long as that of v+. Qwen-Image."""
    tokens = pack(plainly(positive, negative, scale))
    norms = torch.linalg.vector_norm(pack(positive), dim=2, keepdim=True)
    tokens = tokens * (norms / torch.linalg.vector_norm(tokens, dim=2, keepdim=True))
    return unpack(tokens, *positive.shape[2:])


def bounded_norm(guided: Tensor, positive: Tensor, bound: float) -> Tensor:
    """Return `guided`, each sample shortened to at most `bound` times the norm of the prompt's own velocity."""
    norms = torch.linalg.vector_norm(guided, dim=(1, 2, 3), keepdim=True)
    most = bound * torch.linalg.vector_norm(positive, dim=(1, 2, 3), keepdim=True)
    return torch.where(norms > most, guided * (most / norms), guided)
