"""Classifier-free guidance as the families' pipelines apply it.

Each function takes the velocities [B, C, H, W] float32 of the prompt (v+) and of the negative prompt (v-),
and the scale s, with the meaning it has in the pipeline.

Source: Ho and Salimans, arXiv 2207.12598.
"""

import torch
from torch import Tensor

from marble_cli.policy.families.latents import pack, unpack


def guide_from_negative(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Return v- + s (v+ - v-): s = 1 gives v+. For SD3, FLUX.1, Chroma and Sana."""
    return negative + scale * (positive - negative)


def guide_from_positive(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Return v+ + s (v+ - v-): s = 0 gives v+. For Z-Image."""
    return positive + scale * (positive - negative)


def guide_with_token_norms(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Return v- + s (v+ - v-) with every 2 x 2 patch scaled to the norm of v+'s. For Qwen-Image."""
    tokens = pack(guide_from_negative(positive, negative, scale))
    norms = torch.linalg.vector_norm(pack(positive), dim=2, keepdim=True)
    tokens = tokens * (norms / torch.linalg.vector_norm(tokens, dim=2, keepdim=True))
    return unpack(tokens, *positive.shape[2:])


def guide_with_row_norms(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Return v- + s (v+ - v-) with every row [W] of latents scaled to the norm of v+'s. For Lumina 2."""
    guided = guide_from_negative(positive, negative, scale)
    own, wanted = (torch.linalg.vector_norm(v, dim=3, keepdim=True) for v in (guided, positive))
    scaled: Tensor = guided * (wanted / own)
    return scaled


def bound_norm(guided: Tensor, positive: Tensor, bound: float) -> Tensor:
    """Return `guided` with each sample's norm limited to `bound` times the norm of `positive`."""
    rest = tuple(range(1, guided.ndim))
    norms = torch.linalg.vector_norm(guided, dim=rest, keepdim=True)
    most = bound * torch.linalg.vector_norm(positive, dim=rest, keepdim=True)
    return torch.where(norms > most, guided * (most / norms), guided)
