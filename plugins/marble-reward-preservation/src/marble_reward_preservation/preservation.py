"""The `preservation` reward: how alike an image and the picture it was edited from are, place by place."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize
from transformers import AutoModel
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from marble_cli.pretrained import load_model, loading, resolve_source

# Parameters of published models, for plans.
PUBLISHED = {
    "facebook/dinov2-small": 22_056_576,
    "facebook/dinov2-base": 86_580_480,
    "facebook/dinov2-large": 304_368_640,
    "facebook/dinov2-giant": 1_136_480_768,
    "facebook/dinov2-with-registers-base": 86_583_552,
}
KINDS = ("dinov2", "dinov2_with_registers", "dinov3_vit")
Sample = tuple[Tensor, str, dict[str, str], Tensor]  # picture, prompt, metadata and condition
CHUNK = 32  # pictures in the model at once, which bounds the memory for batches of any size


class Preservation:
    """Cosine of the features of an image and the picture it was edited from, where they are most alike."""

    range = (-1.0, 1.0)
    license = "Apache-2.0; weights Apache-2.0 (facebook/dinov2-*)"
    citation = "DINOv2, arXiv 2304.07193"
    loads: ClassVar = {"model": PUBLISHED}

    def __init__(
        self,
        model: str = "facebook/dinov2-base",
        side: int = 224,
        changed: float = 0.25,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Load a DINO model.

        Args:
            model: a folder, or a repository of the Hugging Face hub: DINOv2, with registers too, or DINOv3.
            side: pixels that the shorter edge of a picture is scaled to.
            changed: the share of patches that an edit may change: those least alike are left out.
            device: where to compute.
            dtype: precision of the model.

        Raises:
            ValueError: `side` or `changed` is out of range.
            OSError: the model cannot be found or fetched, is of another kind, is incomplete, or has no
                safetensors weights.
        """
        if not 0 <= changed < 1:
            raise ValueError(f"changed={changed}: expected a share of the patches, at least 0 and below 1")
        source = resolve_source(model)
        with loading(f"the DINO model {source!r}", "config.json and model.safetensors of DINOv2 or DINOv3"):
            dino = load_model(AutoModel, source, dtype)
            if dino.config.model_type not in KINDS:
                raise ValueError(f"it is of the kind {dino.config.model_type}")
        self.model, self.patch, self.side = dino.to(device), int(dino.config.patch_size), side
        if side < self.patch:
            raise ValueError(f"side={side}: expected at least a patch of the model, {self.patch} pixels")
        self.changed = changed

    def __call__(self, images: Tensor, conditions: Tensor) -> Tensor:
        """Score a batch.

        Args:
            images: uint8 [B, 3, H, W].
            conditions: uint8 [B, 3, H, W], the pictures that they were edited from.

        Returns:
            [B] float32 on the CPU: the mean cosine of an image's and its condition's patches at the same
            place, over the patches whose cosines are highest; 1 for equal pictures, and infinite, as of a
            failure, where the model overflowed.
        """
        distinct, rows = _distinct(conditions)
        parts = [slice(first, first + CHUNK) for first in range(0, len(images), CHUNK)]
        before = torch.cat([self._features(part) for part in distinct.split(CHUNK)])
        scores = torch.cat([self._compare(self._features(images[p]), before[rows[p]]) for p in parts])
        return scores.masked_fill(scores.isnan(), torch.inf)

    @staticmethod
    def examples() -> list[tuple[Sample, Sample]]:
        """Return pairs: a picture that was kept before its negative, and before noise."""
        draw = torch.Generator().manual_seed(0)
        grid = torch.rand(1, 3, 4, 4, generator=draw)
        picture = (interpolate(grid, (64, 64), mode="bilinear")[0] * 255).byte()
        noise = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=draw)
        kept: Sample = (picture, "change nothing", {}, picture)
        return [(kept, (other, "change nothing", {}, picture)) for other in (255 - picture, noise)]

    def _compare(self, after: Tensor, before: Tensor) -> Tensor:
        cosines = (after * before).sum(dim=2)
        kept = cosines.shape[1] - math.floor(self.changed * cosines.shape[1])
        return cosines.topk(kept, dim=1).values.mean(dim=1).clamp(-1, 1)

    @torch.no_grad()
    def _features(self, pictures: Tensor) -> Tensor:
        """Return the features of the patches of pictures uint8 [b, 3, H, W]: [b, P, D] float32, length 1."""
        size = [self._scaled(edge, min(pictures.shape[2:])) for edge in pictures.shape[2:]]
        patches = size[0] * size[1] // self.patch**2
        pixels = _standardise(interpolate(pictures / 255, size, mode="bicubic", antialias=True).clamp(0, 1))
        output: Any = self.model(pixel_values=pixels.to(self.model.device, self.model.dtype))
        # The first tokens are the class's and the registers.
        return normalize(output.last_hidden_state[:, -patches:].float(), dim=2).cpu()

    def _scaled(self, edge: int, shorter: int) -> int:
        """Return the length of an edge when the shorter one has `side` pixels, in whole patches."""
        return max(1, round(self.side * edge / shorter / self.patch)) * self.patch


def _distinct(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pictures that differ, and which of them each picture is: images of a group have one."""
    places: dict[bytes, int] = {}
    rows = [places.setdefault(picture.numpy().tobytes(), len(places)) for picture in pictures]
    firsts = [rows.index(place) for place in range(len(places))]
    return pictures[firsts], torch.tensor(rows)


def _standardise(pixels: Tensor) -> Tensor:
    """Subtract ImageNet's mean from pixels [b, 3, H, W] in [0, 1], and divide by its standard deviation."""
    mean, std = (
        pixels.new_tensor(values)[:, None, None] for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    return (pixels - mean) / std
