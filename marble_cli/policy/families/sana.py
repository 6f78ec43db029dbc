"""Sana family: linear attention over few tokens of a deeply compressing autoencoder."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import SanaPipeline
from torch import Tensor

from marble_cli.config.schema import ModelConfig
from marble_cli.policy.base import PromptEmbeddings
from marble_cli.policy.families.guidance import plainly
from marble_cli.policy.families.masks import trimmed

# What the pipeline puts before a prompt where its caller says nothing else.
INSTRUCTION = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default


class Sana:
    """A `SanaPipeline`; implements `policy.base.Family`."""

    even_times = False
    float16 = False  # the sums of the linear attention leave its range
    guided = staticmethod(plainly)

    def __init__(self, pipeline: SanaPipeline, model: ModelConfig) -> None:
        self.pipeline, self.model = pipeline, model
        self.encoders = (pipeline.text_encoder,)
        side = model.resolution // pipeline.vae_scale_factor
        self.latent_shape = (pipeline.transformer.config.in_channels, side, side)

    @staticmethod
    def left_out(model: ModelConfig) -> tuple[str, ...]:
        return ()

    @staticmethod
    def downscaling(vae: Mapping[str, Any], transformer: Mapping[str, Any]) -> int:
        scale: int = 2 ** (len(vae["encoder_block_out_channels"]) - 1) * transformer["patch_size"]
        return scale

    def encode(self, prompts: Sequence[str]) -> PromptEmbeddings:
        return self._encode(prompts, INSTRUCTION)

    def encode_negative(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """No instruction stands before them."""
        return self._encode(prompts, None)

    def _encode(self, prompts: Sequence[str], instruction: list[str] | None) -> PromptEmbeddings:
        tokens, mask, _, _ = self.pipeline.encode_prompt(
            prompt=list(prompts),
            do_classifier_free_guidance=False,
            device=self.encoders[0].device,
            max_sequence_length=self.model.max_sequence_length,
            complex_human_instruction=instruction,
        )
        return PromptEmbeddings({"tokens": tokens, "mask": mask.bool()})

    def velocity(self, xt: Tensor, t: Tensor, embeddings: PromptEmbeddings) -> Tensor:
        tokens, mask = trimmed(embeddings)
        transformer = self.pipeline.transformer
        velocity: Tensor = transformer(
            xt,
            encoder_hidden_states=tokens,
            encoder_attention_mask=mask,
            timestep=t * 1000 * transformer.config.timestep_scale,
            return_dict=False,
        )[0]
        return velocity[:, : xt.shape[1]]  # a variance may follow

    def decode(self, x0: Tensor) -> Tensor:
        vae = self.pipeline.vae
        pixels: Tensor = vae.decode(x0 / vae.config.scaling_factor, return_dict=False)[0]
        return pixels

    def scheduler_config(self) -> dict[str, Any]:
        """Published pipelines have a DPM-Solver, which names its shift otherwise."""
        config = self.pipeline.scheduler.config
        return {"shift": config.get("flow_shift", config.get("shift", 1.0))}
