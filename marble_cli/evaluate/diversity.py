"""Measure how different the images of one prompt are, so that a policy that collapses is seen.

An image's embedding is its latent, as the policy drew it: the VAE's own code, which every model has and which
nothing has to be fetched for. The distance of two images is the root mean square difference of their latents.
It says how much pictures differ, not in what, and is comparable for one model at one size only.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def diversities(latents: Sequence[Tensor], images_per_prompt: int) -> Tensor:
    """Return each prompt's mean distance over all pairs of its images, [prompts] float64.

    Args:
        latents: prompts * images_per_prompt of [C, H, W], prompt after prompt; a prompt's have one size.
        images_per_prompt: at least 2.
    """
    firsts = range(0, len(latents), images_per_prompt)
    groups = [
        torch.stack([*latents[first : first + images_per_prompt]]).double().flatten(1) for first in firsts
    ]
    return torch.stack([torch.nn.functional.pdist(group).mean() / group.shape[1] ** 0.5 for group in groups])
