"""Lumina-Image 2.0: text and image tokens in one stream."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from marble_cli.config.schema import ModelConfig
from marble_cli.policy.base import Family, Images, PromptEmbeddings, count_tokens
from marble_cli.policy.diffusers_types import Pipeline
from marble_cli.policy.families.guidance import guide_with_row_norms
from marble_cli.policy.families.latents import decode_kl, latent_shape
from marble_cli.policy.families.masks import trim_padding


class Lumina2(Family):
    """A `Lumina2Pipeline`."""

    network = "transformer"
    text = "long"
    conditions = False
    even_times = True
    float16 = False  # published and used in bfloat16 alone
    float32_latents = False
    guided = staticmethod(guide_with_row_norms)

    def __init__(self, pipeline: Pipeline, model: ModelConfig) -> None:
        self.pipeline, self.model = pipeline, model
        self.encoders = (pipeline.components["text_encoder"],)
        channels = pipeline.transformer.config["in_channels"]
        self.latent_shape = latent_shape(channels, model, pipeline.vae_scale_factor)

    @staticmethod
    def downscaling(vae: Mapping[str, Any], network: Mapping[str, Any]) -> int:
        scale: int = 2 ** (len(vae["block_out_channels"]) - 1) * network["patch_size"]
        return scale

    def encode(self, prompts: Sequence[str], images: Images | None = None) -> PromptEmbeddings:
        tokens, mask, _, _ = self._encode(prompts)
        return _masked(tokens, mask)

    def encode_negative(self, prompts: Sequence[str], images: Images | None = None) -> PromptEmbeddings:
        # The pipeline puts its system prompt before prompts alone.
        _, _, tokens, mask = self._encode([""] * len(prompts), list(prompts))
        return _masked(tokens, mask)

    def _encode(self, prompts: Sequence[str], negatives: list[str] | None = None) -> tuple[Any, ...]:
        return self.pipeline.encode_prompt(
            prompt=list(prompts),
            do_classifier_free_guidance=negatives is not None,
            negative_prompt=negatives,
            device=self.encoders[0].device,
            max_sequence_length=self.model.max_sequence_length,
        )

    def velocity(self, xt: Tensor, t: Tensor, embeddings: PromptEmbeddings) -> Tensor:
        # The transformer's time runs from noise to picture, so that its velocity has the opposite sign.
        lengths = torch.tensor(embeddings.lengths)
        tokens, mask = trim_padding(embeddings)
        counted = torch.arange(tokens.shape[1]) < lengths[:, None]

        def count_on_cpu(module: Any, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return inputs[0], counted  # it asks the mask for the lengths, and would wait for the device

        transformer: Any = self.pipeline.transformer
        with transformer.rope_embedder.register_forward_pre_hook(count_on_cpu):
            velocity: Tensor = transformer(
                hidden_states=xt,
                timestep=1 - t,
                encoder_hidden_states=tokens,
                encoder_attention_mask=mask,
                return_dict=False,
            )[0]
        return -velocity

    def decode(self, x0: Tensor) -> Tensor:
        return decode_kl(self.pipeline.vae, x0)


def _masked(tokens: Tensor, mask: Tensor) -> PromptEmbeddings:
    mask = mask.bool()
    return PromptEmbeddings({"tokens": tokens, "mask": mask}, count_tokens(mask))
