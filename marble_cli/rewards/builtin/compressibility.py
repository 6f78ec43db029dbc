"""Score how small an image is as a JPEG, one of the rewards of DDPO."""

import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor


class Compressibility:
    """Minus the size of the image as a JPEG, in kB: smoother images score higher."""

    range = (None, 0.0)
    license = "Apache-2.0"
    citation = "arXiv 2305.13301"

    def __init__(self, quality: int = 95) -> None:
        """Keep `quality`, the JPEG quality from 1 to 95."""
        if not 1 <= quality <= 95:
            raise ValueError(f"quality={quality}: expected 1 to 95")
        self.quality = quality

    def __call__(self, images: Tensor) -> list[float]:
        """Score images uint8 [B, 3, H, W], in kB of 1,000 bytes."""
        return [-self._bytes(image) / 1000 for image in images]

    @staticmethod
    def examples() -> list[Any]:
        """Return pairs of pictures: one level above a ramp, and a ramp above noise."""
        level = torch.full((3, 32, 32), 128, dtype=torch.uint8)
        ramp = torch.linspace(0, 255, 32).byte().expand(3, 32, 32)
        noise = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
        return [((level, ""), (ramp, "")), ((ramp, ""), (noise, ""))]

    def _bytes(self, image: Tensor) -> int:
        stream = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(
            stream, "JPEG", quality=self.quality
        )
        return stream.tell()
