"""Pack latents into tokens, and encode and decode with an `AutoencoderKL`; several families share this."""

import torch
from torch import Tensor
from torch.nn import functional

from marble_cli.config.resolution import read_resolution
from marble_cli.config.schema import ModelConfig
from marble_cli.policy.diffusers_types import Autoencoder


def latent_shape(channels: int, model: ModelConfig, scale: int) -> tuple[int, int, int]:
    """Return the shape (C, H, W) of an image's latents; each spans `scale` pixels on a side."""
    size = read_resolution(model.resolution)
    return channels, size.height // scale, size.width // scale


def pack(latents: Tensor) -> Tensor:
    """Pack latents [B, C, H, W] into tokens [B, H / 2 x W / 2, 4 C]: 2 x 2 patches, channels outermost."""
    return functional.pixel_unshuffle(latents, 2).flatten(2).mT


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Unpack tokens [B, height / 2 x width / 2, 4 C] into latents [B, C, height, width]; inverts `pack`."""
    return functional.pixel_shuffle(tokens.mT.unflatten(2, (height // 2, width // 2)), 2)


def decode_kl(vae: Autoencoder, x0: Tensor) -> Tensor:
    """Decode the transformer's latents [B, C, H, W] into pixels [B, 3, H, W] in [-1, 1]."""
    latents = x0 / vae.config["scaling_factor"] + (vae.config["shift_factor"] or 0.0)
    return vae.decode(latents, return_dict=False)[0]


def as_pixels(pictures: Tensor) -> Tensor:
    """Return pixels [B, 3, H, W] float32 in [-1, 1] of pictures uint8, as diffusers' processors do."""
    return 2 * (pictures / 255) - 1


def encode_kl(vae: Autoencoder, pictures: Tensor) -> Tensor:
    """Encode pictures uint8 [B, 3, H, W] into latents [B, C, h, w] of the transformer; inverts `decode_kl`.

    They are the mode of the VAE's distribution, of one picture after the other: encoding takes much memory.
    """
    pixels = as_pixels(pictures).to(vae.device, vae.dtype)
    latents = torch.cat([vae.encode(one, return_dict=False)[0].mode() for one in pixels.split(1)])
    shift: float = vae.config["shift_factor"] or 0.0
    scale: float = vae.config["scaling_factor"]
    return (latents - shift) * scale
