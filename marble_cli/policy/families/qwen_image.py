"""Qwen-Image."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from marble_cli.config.schema import ModelConfig
from marble_cli.policy.base import Family, Images, PromptEmbeddings
from marble_cli.policy.diffusers_types import Pipeline
from marble_cli.policy.editing import latents_of
from marble_cli.policy.families.guidance import guide_with_token_norms
from marble_cli.policy.families.latents import latent_shape, pack, unpack
from marble_cli.policy.families.masks import pad_prompts, trim_padding


class QwenImage(Family):
    """A `QwenImagePipeline`."""

    network = "transformer"
    text = "long"
    conditions = False
    even_times = True
    float16 = True
    float32_latents = False
    guided = staticmethod(guide_with_token_norms)

    def __init__(self, pipeline: Pipeline, model: ModelConfig) -> None:
        self.pipeline, self.model = pipeline, model
        self.encoders = (pipeline.components["text_encoder"],)
        channels = pipeline.transformer.config["in_channels"] // 4
        self.latent_shape = latent_shape(channels, model, pipeline.vae_scale_factor)

    @staticmethod
    def downscaling(vae: Mapping[str, Any], network: Mapping[str, Any]) -> int:
        scale: int = 2 ** len(vae["temperal_downsample"]) * 2  # diffusers' spelling
        return scale

    def encode(self, prompts: Sequence[str], images: Images | None = None) -> PromptEmbeddings:
        length = self.model.max_sequence_length
        tokens, mask = self.pipeline.encode_prompt(
            prompt=list(prompts), device=self.encoders[0].device, max_sequence_length=length
        )
        if mask is None:  # all prompts have one length
            return pad_prompts(list(tokens), length)
        return pad_prompts([row[valid.bool()] for row, valid in zip(tokens, mask, strict=True)], length)

    def velocity(self, xt: Tensor, t: Tensor, embeddings: PromptEmbeddings) -> Tensor:
        (tokens, mask), pictures = trim_padding(embeddings), [xt, *latents_of(embeddings.tensors)]
        shapes = [(1, latents.shape[2] // 2, latents.shape[3] // 2) for latents in pictures]
        velocity: Tensor = self.pipeline.transformer(
            hidden_states=torch.cat([pack(latents) for latents in pictures], dim=1),
            timestep=t,
            encoder_hidden_states=tokens,
            encoder_hidden_states_mask=mask,
            img_shapes=[shapes] * len(xt),
            return_dict=False,
        )[0]
        height, width = xt.shape[2:]
        return unpack(velocity[:, : height * width // 4], height, width)

    def decode(self, x0: Tensor) -> Tensor:
        # The VAE is made for videos; a picture is one frame.
        mean, std = self.latent_statistics(x0)
        pixels: Tensor = self.pipeline.vae.decode((x0 * std + mean)[:, :, None], return_dict=False)[0]
        return pixels[:, :, 0]

    def latent_statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation [C, 1, 1] of the VAE's latents, typed as `like`."""
        config = self.pipeline.vae.config
        mean, std = (
            torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]
            for values in (config["latents_mean"], config["latents_std"])
        )
        return mean, std
