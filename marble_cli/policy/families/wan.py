"""Wan 2.1, and Wan 2.2 with one transformer (TI2V), from texts to videos."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from marble_cli.config.resolution import read_resolution
from marble_cli.config.schema import ModelConfig
from marble_cli.policy.base import Family, Images, PromptEmbeddings
from marble_cli.policy.diffusers_types import Pipeline
from marble_cli.policy.families.guidance import guide_from_negative

# Frames per second of the videos that the models were trained on, by the presence of patches in the VAE.
FPS = {False: 16, True: 24}  # Wan 2.1; Wan 2.2 TI2V


class Wan(Family):
    """A `WanPipeline`; implements `policy.video.VideoFamily`.

    The transformer attends to prompts with their padding, which is zeros, as in the pipeline.
    """

    network = "transformer"
    text = "long"
    conditions = False
    even_times = False
    float16 = True
    float32_latents = False
    guided = staticmethod(guide_from_negative)

    def __init__(self, pipeline: Pipeline, model: ModelConfig) -> None:
        self.pipeline, self.model = pipeline, model
        self.encoders = (pipeline.components["text_encoder"],)
        vae, size = pipeline.vae.config, read_resolution(model.resolution)
        self.frames, self.frames_decoded_at_once = model.frames or 1, self.frames_per_latent(vae)
        self.fps = FPS[bool(vae["patch_size"])]
        self.latent_shape = (
            pipeline.transformer.config["in_channels"],
            (self.frames - 1) // self.frames_per_latent(vae) + 1,
            size.height // vae["scale_factor_spatial"],
            size.width // vae["scale_factor_spatial"],
        )

    @staticmethod
    def downscaling(vae: Mapping[str, Any], network: Mapping[str, Any]) -> int:
        scale: int = vae.get("scale_factor_spatial", 8) * network.get("patch_size", (1, 2, 2))[1]
        return scale

    @staticmethod
    def frames_per_latent(vae: Mapping[str, Any]) -> int:
        factor: int = vae.get("scale_factor_temporal", 4)
        return factor

    def encode(self, prompts: Sequence[str], images: Images | None = None) -> PromptEmbeddings:
        tokens, _ = self.pipeline.encode_prompt(
            prompt=list(prompts),
            do_classifier_free_guidance=False,
            max_sequence_length=self.model.max_sequence_length,
            device=self.encoders[0].device,
        )
        return PromptEmbeddings({"tokens": tokens})

    def velocity(self, xt: Tensor, t: Tensor, embeddings: PromptEmbeddings) -> Tensor:
        # The pipeline of TI2V repeats the time for each token. Without a first picture they are all equal:
        # one time per sample gives the same values without a modulation of each token.
        velocity: Tensor = self.pipeline.transformer(
            hidden_states=xt,
            timestep=t * 1000,
            encoder_hidden_states=embeddings.tensors["tokens"],
            return_dict=False,
        )[0]
        return velocity

    def decode(self, x0: Tensor) -> Tensor:
        vae = self.pipeline.vae
        mean, std = (
            torch.tensor(vae.config[f"latents_{name}"], dtype=x0.dtype, device=x0.device)[:, None, None, None]
            for name in ("mean", "std")
        )
        pixels: Tensor = vae.decode(x0 * std + mean, return_dict=False)[0]
        return pixels.transpose(1, 2)

    def scheduler_config(self) -> dict[str, Any]:
        # Published pipelines have a UniPC solver, whose key for the shift is `flow_shift`.
        config = self.pipeline.scheduler.config
        return {"shift": config.get("flow_shift", config.get("shift", 1.0))}
