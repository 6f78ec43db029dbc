"""Stable Diffusion XL, whose UNet predicts noise and is told the size of pictures."""

from collections.abc import Sequence

import torch
from torch import Tensor

from marble_cli.config.schema import ModelConfig
from marble_cli.policy.base import Images, PromptEmbeddings
from marble_cli.policy.diffusers_types import Pipeline
from marble_cli.policy.families.variance_preserving import VariancePreserving


class SDXL(VariancePreserving):
    """A `StableDiffusionXLPipeline`."""

    def __init__(self, pipeline: Pipeline, model: ModelConfig) -> None:
        super().__init__(pipeline, model)
        if pipeline.vae.dtype is torch.float16 and pipeline.vae.config["force_upcast"]:
            pipeline.vae.float()  # it overflows in float16, and its pipeline decodes in float32, too

    def encode(self, prompts: Sequence[str], images: Images | None = None) -> PromptEmbeddings:
        tokens, _, pooled, _ = self.pipeline.encode_prompt(
            prompt=list(prompts), device=self.encoders[0].device, do_classifier_free_guidance=False
        )
        return PromptEmbeddings({"tokens": tokens, "pooled": pooled})

    def encode_negative(self, prompts: Sequence[str], images: Images | None = None) -> PromptEmbeddings:
        # As the pipeline has it without a negative prompt.
        encoded = self.encode(prompts)
        if not self.pipeline.config["force_zeros_for_empty_prompt"]:
            return encoded
        there = torch.tensor([bool(prompt) for prompt in prompts], device=encoded.device)
        return PromptEmbeddings(
            {
                name: tensor.where(there.reshape(-1, *[1] * (tensor.dim() - 1)), 0)
                for name, tensor in encoded.tensors.items()
            }
        )

    def added_conditions(self, xt: Tensor, embeddings: PromptEmbeddings) -> dict[str, Tensor]:
        pooled = embeddings.tensors["pooled"]
        height, width = (side * self.pipeline.vae_scale_factor for side in xt.shape[2:])
        # Original size, crop and target size, in the dtype of embeddings, as in the pipeline.
        ids = (height, width, 0, 0, height, width)
        return {"text_embeds": pooled, "time_ids": pooled.new_tensor(ids).expand(len(pooled), -1)}
