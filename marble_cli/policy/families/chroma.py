"""Chroma: FLUX.1's transformer without CLIP and without distilled guidance."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from marble_cli.config.schema import ModelConfig
from marble_cli.policy.base import Family, Images, PromptEmbeddings
from marble_cli.policy.diffusers_types import Pipeline
from marble_cli.policy.families.guidance import guide_from_negative
from marble_cli.policy.families.latents import decode_kl, latent_shape, pack, unpack


class Chroma(Family):
    """A `ChromaPipeline`."""

    network = "transformer"
    text = "long"
    conditions = False
    even_times = True
    float16 = True
    float32_latents = False
    guided = staticmethod(guide_from_negative)

    def __init__(self, pipeline: Pipeline, model: ModelConfig) -> None:
        self.pipeline, self.model = pipeline, model
        self.encoders = (pipeline.components["text_encoder"],)
        channels = pipeline.transformer.config["in_channels"] // 4
        self.latent_shape = latent_shape(channels, model, pipeline.vae_scale_factor)

    @staticmethod
    def left_out(model: ModelConfig) -> tuple[str, ...]:
        return ("image_encoder", "feature_extractor")

    @staticmethod
    def downscaling(vae: Mapping[str, Any], network: Mapping[str, Any]) -> int:
        scale: int = 2 ** (len(vae["block_out_channels"]) - 1) * 2
        return scale

    def encode(self, prompts: Sequence[str], images: Images | None = None) -> PromptEmbeddings:
        tokens, _, attended, *_ = self.pipeline.encode_prompt(
            prompt=list(prompts),
            device=self.encoders[0].device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.model.max_sequence_length,
        )
        # As the pipeline has it: numbers, which attention adds to its logits, so that padding counts, too.
        return PromptEmbeddings({"tokens": tokens, "attended": attended})

    def velocity(self, xt: Tensor, t: Tensor, embeddings: PromptEmbeddings) -> Tensor:
        tokens, attended = embeddings.tensors["tokens"], embeddings.tensors["attended"]
        height, width = xt.shape[2:]
        rows, columns = (torch.arange(side // 2, device=xt.device) for side in (height, width))
        packed, transformer = pack(xt), self.pipeline.transformer
        attention = torch.cat([attended, attended.new_ones(packed.shape[:2])], dim=1)
        with _checkpointed_with(transformer, attention):
            velocity: Tensor = transformer(
                hidden_states=packed,
                timestep=t,
                encoder_hidden_states=tokens,
                txt_ids=torch.zeros(tokens.shape[1], 3, device=xt.device),
                img_ids=functional.pad(torch.cartesian_prod(rows, columns), (1, 0)).float(),
                attention_mask=attention,
                return_dict=False,
            )[0]
        return unpack(velocity, height, width)

    def decode(self, x0: Tensor) -> Tensor:
        return decode_kl(self.pipeline.vae, x0)


@contextmanager
def _checkpointed_with(transformer: Any, attention: Tensor) -> Iterator[None]:
    """Give blocks that are checkpointed the attention mask, which diffusers leaves out for single blocks."""
    if not transformer.gradient_checkpointing:
        yield
        return
    checkpoint, singles = transformer._gradient_checkpointing_func, set(transformer.single_transformer_blocks)

    def with_mask(block: nn.Module, *inputs: Any) -> Any:
        return checkpoint(block, *inputs, attention) if block in singles else checkpoint(block, *inputs)

    transformer._gradient_checkpointing_func = with_mask
    try:
        yield
    finally:
        transformer._gradient_checkpointing_func = checkpoint
