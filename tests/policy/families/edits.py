"""Draw the pictures that models of the battery edit: each prompt has its own, perhaps several."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from marble_cli.pictures import seen_sizes

SIZES = [(96, 64), (64, 128), (64, 96)]


@dataclass(frozen=True)
class Drawn:
    """A smooth random picture of a prompt; implements `pictures.Picture`."""

    prompt: str
    place: int = 0  # among the prompt's

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.prompt}{self.place or ''}".encode()).hexdigest()

    @property
    def size(self) -> tuple[int, int]:
        return SIZES[self.place]

    def pixels(self, width: int, height: int) -> Tensor:
        """uint8 [3, H, W]."""
        draw = torch.Generator().manual_seed(int(self.digest[:8], 16))
        grid = torch.rand(1, 3, 4, 4, generator=draw)
        whole = functional.interpolate(grid, (height, width), mode="bilinear", align_corners=True)
        return (whole[0] * 255).round().to(torch.uint8)

    def image(self, width: int, height: int) -> Image.Image:
        """The picture as users give it to a pipeline."""
        return Image.fromarray(numpy.ascontiguousarray(self.pixels(width, height).permute(1, 2, 0).numpy()))


def seen(pictures: Sequence[Drawn], width: int, height: int) -> list[Image.Image]:
    """Pictures of a prompt as users give them to a pipeline that draws an image of this size."""
    sizes = seen_sizes(pictures, width, height)
    return [picture.image(*size) for picture, size in zip(pictures, sizes, strict=True)]
