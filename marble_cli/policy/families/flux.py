"""FLUX.1: dev, whose guidance is distilled into an input of the transformer, and schnell."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from marble_cli.config.schema import ModelConfig
from marble_cli.policy.base import Family, Images, PromptEmbeddings
from marble_cli.policy.diffusers_types import Pipeline
from marble_cli.policy.families.guidance import guide_from_negative
from marble_cli.policy.families.latents import decode_kl, latent_shape, pack, unpack


class Flux(Family):
    """A `FluxPipeline`."""

    network = "transformer"
    text = "long"
    conditions = False
    even_times = True
    float16 = True
    float32_latents = False
    guided = staticmethod(guide_from_negative)

    def __init__(self, pipeline: Pipeline, model: ModelConfig) -> None:
        self.pipeline, self.model = pipeline, model
        self.encoders = (pipeline.components["text_encoder"], pipeline.components["text_encoder_2"])
        channels = pipeline.transformer.config["in_channels"] // 4
        self.latent_shape = latent_shape(channels, model, pipeline.vae_scale_factor)

    @staticmethod
    def downscaling(vae: Mapping[str, Any], network: Mapping[str, Any]) -> int:
        scale: int = 2 ** (len(vae["block_out_channels"]) - 1) * 2
        return scale

    def encode(self, prompts: Sequence[str], images: Images | None = None) -> PromptEmbeddings:
        # T5's padding is not masked: the transformer was trained to see it.
        tokens, pooled, _ = self.pipeline.encode_prompt(
            prompt=list(prompts),
            device=self.encoders[0].device,
            max_sequence_length=self.model.max_sequence_length,
        )
        return PromptEmbeddings({"tokens": tokens, "pooled": pooled})

    def velocity(self, xt: Tensor, t: Tensor, embeddings: PromptEmbeddings) -> Tensor:
        tokens, pictures = embeddings.tensors["tokens"], [xt]
        if "condition" in embeddings.tensors:
            pictures.append(embeddings.tensors["condition"])
        guidance = self.model.guidance
        velocity: Tensor = self.pipeline.transformer(
            hidden_states=torch.cat([pack(latents) for latents in pictures], dim=1),
            timestep=t,
            guidance=None if guidance is None else torch.full_like(t, guidance),
            pooled_projections=embeddings.tensors["pooled"],
            encoder_hidden_states=tokens,
            txt_ids=torch.zeros(tokens.shape[1], 3, device=xt.device),
            img_ids=torch.cat([_positions(latents, place) for place, latents in enumerate(pictures)]),
            return_dict=False,
        )[0]
        height, width = xt.shape[2:]
        return unpack(velocity[:, : height * width // 4], height, width)

    def decode(self, x0: Tensor) -> Tensor:
        return decode_kl(self.pipeline.vae, x0)


def _positions(latents: Tensor, place: int) -> Tensor:
    """Return (place, row, column) of every token of latents [B, C, H, W], float32 [H / 2 x W / 2, 3]."""
    sides = [torch.arange(side // 2, device=latents.device) for side in latents.shape[2:]]
    return torch.cartesian_prod(torch.full((1,), place, device=latents.device), *sides).float()
