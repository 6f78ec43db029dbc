"""Stable Diffusion 3: SD3, SD3.5-Medium and Large, and the embedded `tiny` model."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from marble_cli.config.schema import ModelConfig
from marble_cli.policy.base import Family, Images, PromptEmbeddings
from marble_cli.policy.diffusers_types import Pipeline
from marble_cli.policy.families.guidance import guide_from_negative
from marble_cli.policy.families.latents import decode_kl, latent_shape


class SD3(Family):
    """A `StableDiffusion3Pipeline`."""

    network = "transformer"
    text = "both"
    conditions = False
    even_times = False
    float16 = True
    float32_latents = False
    guided = staticmethod(guide_from_negative)

    def __init__(self, pipeline: Pipeline, model: ModelConfig) -> None:
        self.pipeline, self.model = pipeline, model
        names = ("text_encoder", "text_encoder_2", "text_encoder_3")
        encoders = [pipeline.components[name] for name in names]
        self.encoders = tuple(encoder for encoder in encoders if encoder is not None)
        channels = pipeline.transformer.config["in_channels"]
        self.latent_shape = latent_shape(channels, model, pipeline.vae_scale_factor)

    @staticmethod
    def left_out(model: ModelConfig) -> tuple[str, ...]:
        # Without tokens of T5 its encoder is not needed.
        return ("text_encoder_3", "tokenizer_3") if model.max_sequence_length == 0 else ()

    @staticmethod
    def downscaling(vae: Mapping[str, Any], network: Mapping[str, Any]) -> int:
        scale: int = 2 ** (len(vae["block_out_channels"]) - 1) * network["patch_size"]
        return scale

    def encode(self, prompts: Sequence[str], images: Images | None = None) -> PromptEmbeddings:
        tokens, _, pooled, _ = self.pipeline.encode_prompt(
            prompt=list(prompts),
            prompt_2=None,
            prompt_3=None,
            device=self.encoders[0].device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.model.max_sequence_length,
        )
        return PromptEmbeddings({"tokens": tokens, "pooled": pooled})

    def velocity(self, xt: Tensor, t: Tensor, embeddings: PromptEmbeddings) -> Tensor:
        velocity: Tensor = self.pipeline.transformer(
            hidden_states=xt,
            timestep=t * 1000,
            encoder_hidden_states=embeddings.tensors["tokens"],
            pooled_projections=embeddings.tensors["pooled"],
            return_dict=False,
        )[0]
        return velocity

    def decode(self, x0: Tensor) -> Tensor:
        return decode_kl(self.pipeline.vae, x0)
