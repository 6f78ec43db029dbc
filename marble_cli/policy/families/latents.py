"""What several families do with latents: packing them into tokens, and decoding with an `AutoencoderKL`."""

from typing import Any

from torch import Tensor
from torch.nn import functional


def pack(latents: Tensor) -> Tensor:
    """Tokens [B, H / 2 x W / 2, 4 C], each a 2 x 2 patch with channels outermost, of latents [B, C, H, W]."""
    return functional.pixel_unshuffle(latents, 2).flatten(2).mT


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Latents [B, C, `height`, `width`] of tokens [B, height / 2 x width / 2, 4 C]; the inverse of `pack`."""
    return functional.pixel_shuffle(tokens.mT.unflatten(2, (height // 2, width // 2)), 2)


def decode_kl(vae: Any, x0: Tensor) -> Tensor:
    """Pixels [B, 3, H, W], -1 to 1, of latents as the transformer knows them."""
    latents = x0 / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    pixels: Tensor = vae.decode(latents, return_dict=False)[0]
    return pixels
