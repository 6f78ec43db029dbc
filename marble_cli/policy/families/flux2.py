"""FLUX.2: dev, whose guidance is distilled into an input of the transformer, and klein."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from marble_cli.config.resolution import read_resolution
from marble_cli.config.schema import ModelConfig
from marble_cli.policy.base import Family, Images, PromptEmbeddings
from marble_cli.policy.diffusers_types import Pipeline
from marble_cli.policy.editing import latents_of, name_latents
from marble_cli.policy.families.guidance import guide_from_negative

PATCH = 2  # latents of the VAE on a side of a token
PLACE = 10  # of the first picture to start from on the first axis of positions; that of the result is 0
MOST = 1024 * 1024  # pixels of a picture to start from; larger ones are made smaller


class Flux2(Family):
    """A `Flux2Pipeline`. Pictures to start from are optional.

    As in the pipeline, latents are patches of 2 x 2 of the VAE's, normalised by the VAE's statistics.
    """

    network = "transformer"
    text = "long"
    conditions = True
    optional = True
    most_pictures = None
    even_times = True
    float16 = True
    float32_latents = False
    guided = staticmethod(guide_from_negative)

    def __init__(self, pipeline: Pipeline, model: ModelConfig) -> None:
        self.pipeline, self.model = pipeline, model
        self.encoders = (pipeline.components["text_encoder"],)
        size, channels = read_resolution(model.resolution), pipeline.transformer.config["in_channels"]
        self.side = pipeline.vae_scale_factor * PATCH
        self.latent_shape = (channels, size.height // self.side, size.width // self.side)

    def encoded_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) that the pipeline gives a picture of this size, at least a token."""
        scale = min(1.0, math.sqrt(MOST / (width * height)))
        columns, rows = (
            max(self.side, int(side * scale) // self.side * self.side) for side in (width, height)
        )
        return columns, rows

    def condition_shape(self, width: int, height: int) -> tuple[int, int, int]:
        columns, rows = self.encoded_size(width, height)
        return self.latent_shape[0], rows // self.side, columns // self.side

    def picture_tokens(self, width: int, height: int) -> int:
        return 0

    @staticmethod
    def downscaling(vae: Mapping[str, Any], network: Mapping[str, Any]) -> int:
        scale: int = 2 ** (len(vae["block_out_channels"]) - 1) * PATCH
        return scale

    def encode(self, prompts: Sequence[str], images: Images | None = None) -> PromptEmbeddings:
        # The padding is not masked: the transformer was trained to see it.
        tokens, _ = self.pipeline.encode_prompt(
            prompt=list(prompts),
            device=self.encoders[0].device,
            max_sequence_length=self.model.max_sequence_length,
        )
        tensors = {"tokens": tokens}
        if images is not None:
            tensors |= name_latents([[self._encode_picture(image) for image in row] for row in images])
        return PromptEmbeddings(tensors)

    def _encode_picture(self, picture: Tensor) -> Tensor:
        """Return the latents [1, C, H, W] of a picture uint8 [3, h, w]: the mode of their distribution."""
        vae, processor = self.pipeline.vae, self.pipeline.image_processor
        width, height = self.encoded_size(picture.shape[2], picture.shape[1])
        image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
        if image.width * image.height > MOST:
            image = processor._resize_to_target_area(image, MOST)
        pixels = processor.preprocess(image, height=height, width=width, resize_mode="crop")
        latents = vae.encode(pixels.to(vae.device, vae.dtype), return_dict=False)[0].mode()
        mean, std = self._statistics(latents)
        return (functional.pixel_unshuffle(latents, PATCH) - mean) / std

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation [C, 1, 1] of latents, typed as `like`."""
        norm: Any = self.pipeline.vae.bn
        variance = norm.running_var + self.pipeline.vae.config["batch_norm_eps"]
        mean, std = (part.to(like)[:, None, None] for part in (norm.running_mean, variance.sqrt()))
        return mean, std

    def velocity(self, xt: Tensor, t: Tensor, embeddings: PromptEmbeddings) -> Tensor:
        tokens, pictures = embeddings.tensors["tokens"], [xt, *latents_of(embeddings.tensors)]
        guidance = self.model.guidance
        velocity: Tensor = self.pipeline.transformer(
            hidden_states=torch.cat([latents.flatten(2).mT for latents in pictures], dim=1),
            timestep=t,
            guidance=None if guidance is None else torch.full_like(t, guidance),
            encoder_hidden_states=tokens,
            txt_ids=_positions(0, (1, 1, tokens.shape[1]), xt.device),
            img_ids=torch.cat([
                _positions(PLACE * place, (*latents.shape[2:], 1), xt.device)
                for place, latents in enumerate(pictures)
            ]),
            return_dict=False,
        )[0]  # fmt: skip
        rows, columns = xt.shape[2:]
        whole: Tensor = velocity[:, : rows * columns].mT.unflatten(2, (rows, columns))
        return whole

    def decode(self, x0: Tensor) -> Tensor:
        mean, std = self._statistics(x0)
        latents = functional.pixel_shuffle(x0 * std + mean, PATCH)
        pixels: Tensor = self.pipeline.vae.decode(latents, return_dict=False)[0]
        return pixels

    def scheduler_config(self) -> dict[str, Any]:
        return {**self.pipeline.scheduler.config, "shift_by_steps": True}


class Flux2Klein(Flux2):
    """A `Flux2KleinPipeline`."""


def _positions(place: int, sides: Sequence[int], device: torch.device) -> Tensor:
    """Return (place, row, column, index) of N tokens, float32 [N, 4]; `sides` are those of the last three."""
    ranges = [torch.arange(side, device=device) for side in sides]
    return torch.cartesian_prod(torch.full((1,), place, device=device), *ranges).float()
