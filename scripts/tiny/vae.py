"""Train the VAE of the tiny model."""

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from scripts.tiny.painter import RESOLUTION
from scripts.tiny.training import DEVICE, Track, Updater, normalised

CROP = 32  # pixels; a crop costs a quarter of an image
CROP_PLACES = 5  # offsets of 0, 8, ..., 32 pixels


def make_vae() -> AutoencoderKL:
    """Make an autoencoder that is 8 times smaller in its latents, with 8 channels and random weights."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 48, 64),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=RESOLUTION,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def train_vae(
    images: Tensor, crop_steps: int, whole_steps: int, batch: int, draw: torch.Generator
) -> AutoencoderKL:
    """Train the autoencoder, first on crops and then on whole images.

    Args:
        images: uint8 [N, 3, 64, 64].
        crop_steps: optimizer steps on crops.
        whole_steps: optimizer steps on whole images, which set the statistics of the group norms.
        batch: images per step.
        draw: picks images, crops and noise.
    """
    vae = make_vae().to(DEVICE, memory_format=torch.channels_last)
    steps = crop_steps + whole_steps
    updater = Updater(vae, steps, lr=3e-3, weight_decay=1e-4)
    track = Track("vae", steps)
    for step in track:
        part = images[torch.randint(len(images), (batch,), generator=draw)]
        if step < crop_steps:
            top, left = (8 * int(torch.randint(CROP_PLACES, (), generator=draw)) for _ in range(2))
            part = part[:, :, top : top + CROP, left : left + CROP]
        loss = vae_loss(vae, normalised(part.to(DEVICE)), draw)
        updater.update(loss)
        track.show_loss(step, loss.detach())
    return vae.eval()


def vae_loss(vae: AutoencoderKL, images: Tensor, draw: torch.Generator) -> Tensor:
    """Return the reconstruction error of images [B, 3, H, W] in [-1, 1], plus a small KL term."""
    images = images.contiguous(memory_format=torch.channels_last)
    posterior = vae.encode(images).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=draw).to(DEVICE)
    error = vae.decode(posterior.mean + noise * posterior.std).sample - images
    loss: Tensor = error.abs().mean() + error.square().mean() + 2e-4 * posterior.kl().mean() / 512
    return loss


@torch.no_grad()
def encode_all(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Return the latents [N, 8, 8, 8] of all images, with mean 0 and standard deviation 1.

    The shift and the scale that achieve this are written into the VAE's configuration.
    """
    parts = []
    for chunk in images.split(256):
        pixels = normalised(chunk.to(DEVICE)).contiguous(memory_format=torch.channels_last)
        parts.append(vae.encode(pixels).latent_dist.mean.cpu())
    latents = torch.cat(parts)
    shift, scale = latents.mean().item(), 1 / latents.std().item()
    vae.register_to_config(shift_factor=shift, scaling_factor=scale)
    return (latents - shift) * scale
