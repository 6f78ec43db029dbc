"""What the trainer, the rollout and the evaluation need of an image model, whatever its family."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Adapter = Literal["trained", "behaviour"] | None  # None is the base model, adapters off


@dataclass(frozen=True)
class PromptEmbeddings:
    """Embeddings of B prompts: `tokens` [B, L, D] and `pooled` [B, P], in the model's dtype."""

    tokens: Tensor
    pooled: Tensor

    def __getitem__(self, index: Tensor | slice) -> "PromptEmbeddings":
        return PromptEmbeddings(self.tokens[index], self.pooled[index])


@dataclass(frozen=True)
class ModelSize:
    """Parameters of the transformer and of one adapter, image tokens, and bytes of all frozen weights."""

    transformer: int
    lora: int
    tokens: int
    frozen_bytes: int


class Policy(Protocol):
    """A flow model over latents with a trained and a behaviour adapter in one set of frozen weights."""

    device: torch.device
    latent_shape: tuple[int, int, int]

    def encode(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Embeddings of the prompts, without classifier-free guidance."""
        ...

    def velocity(self, xt: Tensor, t: Tensor, embeddings: PromptEmbeddings, adapter: Adapter) -> Tensor:
        """Velocity [B, C, H, W] float32 at `xt` [B, C, H, W] and times `t` [B] in (0, 1]."""
        ...

    def decode(self, x0: Tensor) -> Tensor:
        """Images uint8 [B, 3, H, W] on the CPU from latents [B, C, H, W]."""
        ...

    def scheduler_config(self) -> dict[str, object]:
        """The configuration of the model's flow scheduler, as diffusers names its keys."""
        ...

    def parameters(self, adapter: Literal["trained", "behaviour"]) -> dict[str, torch.nn.Parameter]:
        """The adapter's float32 parameters by a name that both adapters share."""
        ...

    def layers(self) -> list[torch.nn.Linear]:
        """The linear layers, without bias, whose weights are `parameters("trained")`, in their order."""
        ...

    def lora_state(self) -> dict[str, Tensor]:
        """The trained adapter in diffusers' LoRA key format."""
        ...

    def lora_metadata(self) -> dict[str, str]:
        """What a file of `lora_state` must say beside the tensors for diffusers to scale them rightly."""
        ...

    def load_lora(self, state: dict[str, Tensor]) -> None:
        """Put a LoRA in diffusers' key format into both adapters."""
        ...

    def swapped(self, weights: dict[str, Tensor]) -> AbstractContextManager[None]:
        """For a while, let `weights` stand in the trained adapter."""
        ...
