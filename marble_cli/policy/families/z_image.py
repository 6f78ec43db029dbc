"""Z-Image and Z-Image-Turbo."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from marble_cli.config.schema import ModelConfig
from marble_cli.policy.base import Family, Images, PromptEmbeddings
from marble_cli.policy.diffusers_types import Pipeline
from marble_cli.policy.families.guidance import guide_from_positive
from marble_cli.policy.families.latents import decode_kl, latent_shape
from marble_cli.policy.families.masks import pad_prompts


class ZImage(Family):
    """A `ZImagePipeline`."""

    network = "transformer"
    text = "long"
    conditions = False
    even_times = True
    float16 = True
    float32_latents = False
    guided = staticmethod(guide_from_positive)

    def __init__(self, pipeline: Pipeline, model: ModelConfig) -> None:
        self.pipeline, self.model = pipeline, model
        self.encoders = (pipeline.components["text_encoder"],)
        channels = pipeline.transformer.config["in_channels"]
        self.latent_shape = latent_shape(channels, model, pipeline.vae_scale_factor)

    @staticmethod
    def downscaling(vae: Mapping[str, Any], network: Mapping[str, Any]) -> int:
        scale: int = 2 ** (len(vae["block_out_channels"]) - 1) * 2  # patches are always 2 x 2
        return scale

    def encode(self, prompts: Sequence[str], images: Images | None = None) -> PromptEmbeddings:
        length = self.model.max_sequence_length
        rows, _ = self.pipeline.encode_prompt(
            prompt=list(prompts),
            device=self.encoders[0].device,
            do_classifier_free_guidance=False,
            max_sequence_length=length,
        )
        return pad_prompts(rows, length)

    def velocity(self, xt: Tensor, t: Tensor, embeddings: PromptEmbeddings) -> Tensor:
        # The transformer's time runs from noise to picture, so that its velocity has the opposite sign.
        assert embeddings.lengths is not None
        rows = zip(embeddings.tensors["tokens"], embeddings.lengths, strict=True)
        prompts = [row[:length] for row, length in rows]
        outputs = self.pipeline.transformer(list(xt[:, :, None]), 1 - t, prompts, return_dict=False)[0]
        return -torch.stack(outputs)[:, :, 0]

    def decode(self, x0: Tensor) -> Tensor:
        return decode_kl(self.pipeline.vae, x0)
