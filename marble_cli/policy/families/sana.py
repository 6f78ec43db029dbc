"""Sana: linear attention over the few tokens of an autoencoder with strong compression."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import SanaPipeline
from torch import Tensor

from marble_cli.config.schema import ModelConfig
from marble_cli.policy.base import Family, Images, PromptEmbeddings, count_tokens
from marble_cli.policy.diffusers_types import Pipeline
from marble_cli.policy.families.guidance import guide_from_negative
from marble_cli.policy.families.latents import latent_shape
from marble_cli.policy.families.masks import trim_padding

# The instruction that the pipeline prepends to prompts by default.
INSTRUCTION = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default


class Sana(Family):
    """A `SanaPipeline`."""

    network = "transformer"
    text = "long"
    conditions = False
    even_times = False
    float16 = False  # sums in the linear attention exceed its range
    float32_latents = False
    guided = staticmethod(guide_from_negative)

    def __init__(self, pipeline: Pipeline, model: ModelConfig) -> None:
        self.pipeline, self.model = pipeline, model
        self.encoders = (pipeline.components["text_encoder"],)
        channels = pipeline.transformer.config["in_channels"]
        self.latent_shape = latent_shape(channels, model, pipeline.vae_scale_factor)

    @staticmethod
    def downscaling(vae: Mapping[str, Any], network: Mapping[str, Any]) -> int:
        scale: int = 2 ** (len(vae["encoder_block_out_channels"]) - 1) * network["patch_size"]
        return scale

    def encode(self, prompts: Sequence[str], images: Images | None = None) -> PromptEmbeddings:
        return self._encode(prompts, INSTRUCTION)

    def encode_negative(self, prompts: Sequence[str], images: Images | None = None) -> PromptEmbeddings:
        return self._encode(prompts, None)  # the pipeline prepends no instruction to these

    def _encode(self, prompts: Sequence[str], instruction: list[str] | None) -> PromptEmbeddings:
        tokens, mask, _, _ = self.pipeline.encode_prompt(
            prompt=list(prompts),
            do_classifier_free_guidance=False,
            device=self.encoders[0].device,
            max_sequence_length=self.model.max_sequence_length,
            complex_human_instruction=instruction,
        )
        mask = mask.bool()
        return PromptEmbeddings({"tokens": tokens, "mask": mask}, count_tokens(mask))

    def velocity(self, xt: Tensor, t: Tensor, embeddings: PromptEmbeddings) -> Tensor:
        tokens, mask = trim_padding(embeddings)
        transformer = self.pipeline.transformer
        velocity: Tensor = transformer(
            xt,
            encoder_hidden_states=tokens,
            encoder_attention_mask=mask,
            timestep=t * 1000 * transformer.config["timestep_scale"],
            return_dict=False,
        )[0]
        return velocity[:, : xt.shape[1]]  # some models also predict a variance

    def decode(self, x0: Tensor) -> Tensor:
        vae = self.pipeline.vae
        return vae.decode(x0 / vae.config["scaling_factor"], return_dict=False)[0]

    def scheduler_config(self) -> dict[str, Any]:
        # Published pipelines have a DPM-Solver, whose key for the shift is `flow_shift`.
        config = self.pipeline.scheduler.config
        return {"shift": config.get("flow_shift", config.get("shift", 1.0))}
