"""Draw the pictures that models of the battery edit: each prompt has its own."""

import hashlib
from dataclasses import dataclass

import numpy
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Drawn:
    """The smooth random picture of a prompt; implements `policy.base.Picture`."""

    prompt: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.prompt.encode()).hexdigest()

    def pixels(self, width: int, height: int) -> Tensor:
        """uint8 [3, H, W]."""
        draw = torch.Generator().manual_seed(int(self.digest[:8], 16))
        grid = torch.rand(1, 3, 4, 4, generator=draw)
        whole = functional.interpolate(grid, (height, width), mode="bilinear", align_corners=True)
        return (whole[0] * 255).round().to(torch.uint8)

    def image(self, width: int, height: int) -> Image.Image:
        """The picture as users give it to a pipeline."""
        return Image.fromarray(numpy.ascontiguousarray(self.pixels(width, height).permute(1, 2, 0).numpy()))
