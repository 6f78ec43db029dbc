"""Score the colourfulness of natural images (Hasler and Suesstrunk 2003)."""

from typing import Any

import torch
from torch import Tensor


def colorfulness(images: Tensor) -> Tensor:
    """Measure how colourful an image is: 0 is grey, 109 and above is extremely colourful.

    With the opponent axes rg = R - G and yb = (R + G) / 2 - B, the score is the norm of their standard
    deviations plus 0.3 times the norm of their means.

    Args:
        images: uint8 [B, 3, H, W].

    Returns:
        [B] float32.

    Source: Hasler and Suesstrunk, Measuring colourfulness in natural images, SPIE 5007 (2003), eq. 1.
    """
    red, green, blue = images.float().flatten(2).unbind(1)
    rg, yb = red - green, (red + green) / 2 - blue
    deviation = (rg.var(1, correction=0) + yb.var(1, correction=0)).sqrt()
    mean = (rg.mean(1).square() + yb.mean(1).square()).sqrt()
    return deviation + 0.3 * mean


def examples() -> list[Any]:
    """Return pairs of pictures: red beside blue above grey levels, and above the same red and blue, pale."""
    levels = torch.linspace(0, 255, 32).byte().expand(3, 32, 32)
    vivid = torch.zeros(3, 32, 32, dtype=torch.uint8)
    vivid[0, :, :16] = vivid[2, :, 16:] = 255
    pale = vivid // 4 + 160
    return [((vivid, ""), (levels, "")), ((vivid, ""), (pale, "")), ((pale, ""), (levels, ""))]


colorfulness.examples = examples  # type: ignore[attr-defined]
colorfulness.range = (0.0, None)  # type: ignore[attr-defined]
colorfulness.license = "Apache-2.0"  # type: ignore[attr-defined]
colorfulness.citation = "Hasler and Suesstrunk, SPIE 5007, 2003"  # type: ignore[attr-defined]
