"""Decode latents into pictures, in parts that fit into memory, and count what it takes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from marble_cli.config.resolution import read_resolution
from marble_cli.config.schema import ModelConfig
from marble_cli.policy.base import Family
from marble_cli.policy.peak import peak_bytes
from marble_cli.policy.video import as_video

# Pixels in the VAE at once: memory bounds them on a GPU, and larger buffers are slower on a CPU.
DECODED_PIXELS = {"cpu": 2**17, "cuda": 2**21}
# Latents of a video after which each further one adds its pixels alone: the first has one frame, and the
# second fills the VAE's caches.
FULL = 3


def decode_in_parts(family: Family, x0: Tensor, at_once: int) -> tuple[Tensor, Tensor]:
    """Decode latents [B, ...] in parts of nearly equal size, of at most `at_once`.

    A last part of one image would take as long as several.

    Returns:
        On the CPU, uint8 pictures or videos, and [B] bool: whether all of its pixels were finite.
    """
    parts = [_decode(family, part) for part in x0.tensor_split(-(-len(x0) // at_once))]
    pictures, finite = zip(*parts, strict=True)
    return torch.cat(pictures).cpu(), torch.cat(finite).cpu()


def _decode(family: Family, x0: Tensor) -> tuple[Tensor, Tensor]:
    pixels = family.decode(x0)
    each = tuple(range(1, pixels.ndim))
    return as_bytes(pixels), pixels.amin(each).isfinite() & pixels.amax(each).isfinite()


def as_bytes(pixels: Tensor) -> Tensor:
    """Return uint8 of pixels in [-1, 1]."""
    return ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


def decoded_at_once(family: Family, model: ModelConfig, device: str) -> int:
    """Return how many pictures or videos the VAE is given at once on a kind of device."""
    pixels = read_resolution(model.resolution).pixels
    if video := as_video(family):
        pixels *= min(video.frames, video.frames_decoded_at_once)
    return max(1, DECODED_PIXELS.get(device, 2**21) // pixels)


@dataclass(frozen=True)
class Decoding:
    """What the pictures of one size take to be decoded.

    Attributes:
        decoded: bytes of a picture or video, uint8.
        at_once: how many are decoded at once, at most, by the kind of the device.
        count: counts the peak bytes of decoding so many at once.
    """

    decoded: int
    at_once: Callable[[str], int] = field(repr=False, compare=False)
    count: Callable[[int], int] = field(repr=False, compare=False)

    def together(self, batch: int, device: str) -> int:
        """Return how many of a batch are decoded at once."""
        parts = -(-batch // self.at_once(device))
        return -(-batch // parts)

    def peak(self, batch: int, device: str) -> int:
        """Return the most bytes that a batch takes, the pictures that are done included."""
        return self.count(self.together(batch, device)) + batch * self.decoded


def count_decoding(family: Family, model: ModelConfig, dtype: torch.dtype) -> Decoding:
    """Return what decoding takes, counted when it is first asked for.

    Args:
        family: of a pipeline whose VAE is on the meta device.
        model: the configuration group.
        dtype: of the VAE.
    """
    video = as_video(family)
    size, frames = read_resolution(model.resolution), video.frames if video else 1
    picture = 3 * size.pixels

    @cache
    def count(together: int) -> int:
        shape = list(family.latent_shape)
        further = 0
        if video and shape[1] > FULL:
            shape[1] = FULL
            further = frames - 1 - (FULL - 1) * video.frames_decoded_at_once
        latents = torch.empty(together, *shape, dtype=dtype, device="meta")
        pixels = torch.empty(together, frames * picture, dtype=dtype, device="meta")
        decoding = peak_bytes(lambda: family.decode(latents)) + together * further * picture * dtype.itemsize
        return max(decoding, pixels.nbytes + peak_bytes(lambda: as_bytes(pixels)))

    return Decoding(frames * picture, lambda device: decoded_at_once(family, model, device), count)
