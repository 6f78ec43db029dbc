"""A diffusers pipeline of any supported family as a policy: frozen weights, two adapters, one precision."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor

from marble_cli.config.schema import Model
from marble_cli.policy.adapters import LoraPair
from marble_cli.policy.base import Adapter, Family, PromptEmbeddings
from marble_cli.policy.source import DTYPES, image_tokens

DECODED_PIXELS = {
    "cpu": 2**17,
    "cuda": 2**21,
}  # at once: a GPU's memory bounds them; on a CPU larger buffers are slower


class PipelinePolicy:
    """A pipeline with its LoRA pair; implements `policy.base.Policy`."""

    def __init__(self, pipeline: Any, family: Family, model: Model, seed: int):
        self.pipeline, self.family, self.model = pipeline, family, model
        self.device: torch.device = pipeline.transformer.device
        self.dtype = DTYPES[model.precision]
        self.transformer = pipeline.transformer.eval()
        for frozen in (pipeline.vae, *family.encoders):
            frozen.requires_grad_(False).eval()
        self.lora = LoraPair(self.transformer, model.lora, seed)
        self.latent_shape, self.even_times = family.latent_shape, family.even_times
        self.tokens = image_tokens(model, type(family), pipeline.vae.config, pipeline.transformer.config)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> PromptEmbeddings:
        return self.family.encode(prompts)

    def velocity(self, xt: Tensor, t: Tensor, embeddings: PromptEmbeddings, adapter: Adapter) -> Tensor:
        self.lora.activate(adapter)
        half = self.dtype is not torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=half):
            velocity = self.family.velocity(xt.to(self.dtype), t, embeddings)
        return velocity.float()

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        at_once = max(1, DECODED_PIXELS.get(self.device.type, 2**21) // self.model.resolution**2)
        parts = [self.family.decode(part).float() for part in x0.to(self.pipeline.vae.dtype).split(at_once)]
        return ((torch.cat(parts) / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu()

    def scheduler_config(self) -> dict[str, Any]:
        return self.family.scheduler_config()

    def parameters(self, adapter: Literal["trained", "behaviour"]) -> dict[str, torch.nn.Parameter]:
        return self.lora.parameters(adapter)

    def layers(self) -> list[torch.nn.Linear]:
        return self.lora.layers

    def lora_state(self) -> dict[str, Tensor]:
        return self.lora.state()

    def lora_metadata(self) -> dict[str, str]:
        return self.lora.metadata()

    def load_lora(self, state: dict[str, Tensor]) -> None:
        self.lora.load(state)

    def swapped(self, weights: dict[str, Tensor]) -> AbstractContextManager[None]:
        return self.lora.swapped(weights)
