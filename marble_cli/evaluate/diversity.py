"""Measure how different the images of one prompt are, so that a policy that collapses is seen.

An image's embedding is its latent, as the policy drew it: the VAE's own code, which every model has and which
nothing has to be fetched for. The distance of two images is the root mean square difference of their latents.
It says how much pictures differ, not in what, and is comparable for one model at one size only.
"""

import torch
from torch import Tensor


def diversities(latents: Tensor, images_per_prompt: int) -> Tensor:
    """Return each prompt's mean distance over all pairs of its images, [prompts] float64.

    Args:
        latents: [prompts * images_per_prompt, C, H, W], prompt after prompt.
        images_per_prompt: at least 2.
    """
    groups = latents.double().flatten(1).unflatten(0, (-1, images_per_prompt))
    distances = [torch.nn.functional.pdist(group).mean() for group in groups]
    spread: Tensor = torch.stack(distances) / groups.shape[-1] ** 0.5
    return spread
