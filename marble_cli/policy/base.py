"""What the trainer, the rollout and the evaluation need of an image model, and what a family of models adds to that."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from marble_cli.config.schema import ModelConfig

Adapter = Literal["trained", "behaviour"] | None  # which weights act; None: the frozen model as loaded


@dataclass(frozen=True)
class PromptEmbeddings:
    """What a family's transformer wants to know of B prompts: `tensors` [B, ...] by name, in the model's dtype; masks are bool."""

    tensors: Mapping[str, Tensor]

    def __getitem__(self, index: Tensor | slice) -> "PromptEmbeddings":
        return PromptEmbeddings({name: tensor[index] for name, tensor in self.tensors.items()})

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors.values())).device


@dataclass(frozen=True)
class RepeatedEmbeddings:
    """Embeddings of n samples, the i-th being row `rows[i]` of `distinct`: many images of a prompt share its one row."""

    distinct: PromptEmbeddings
    rows: Tensor  # [n] int64, on the embeddings' device

    def __getitem__(self, index: Tensor | slice) -> PromptEmbeddings:
        return self.distinct[self.rows[index]]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class ModelSize:
    """What a run's plan needs to know of a model.

    Parameters of the transformer, and those that are trained; image tokens; bytes of the frozen transformer and VAE, and of the text
    encoders; the transformer's blocks, and outputs that a token has in all linear layers of theirs.
    """

    transformer: int
    trained: int
    tokens: int
    frozen_bytes: int
    encoder_bytes: int
    blocks: int
    features: int


class Trainable(Protocol):
    """What is trained of a pipeline's transformer: a pair of LoRA adapters in it, or float32 copies of all its weights."""

    layers: list[nn.Linear] | None  # as `Policy.layers`

    def parameters(self, adapter: Literal["trained", "behaviour"]) -> dict[str, nn.Parameter]:
        """As in `Policy`."""
        ...

    def activate(self, adapter: Adapter) -> None:
        """Let `pipeline.transformer` act with these weights."""
        ...

    def state(self) -> dict[str, Tensor]:
        """As `Policy.trained_state`."""
        ...

    def load(self, state: dict[str, Tensor]) -> None:
        """As `Policy.load_trained`."""
        ...


class Policy(Protocol):
    """A flow model over latents with trained, behaviour and frozen weights."""

    device: torch.device
    latent_shape: tuple[int, int, int]
    tokens: int  # of an image, as the transformer sees it
    even_times: bool  # as in `Family`

    def prepare(self, prompts: Sequence[str], negatives: Sequence[str] = ()) -> None:
        """Make the embeddings of prompts and negative prompts that are to come, in one go, where these are cached."""
        ...

    def encode(self, prompts: Sequence[str], *, negative: bool = False) -> PromptEmbeddings:
        """Embeddings of the prompts, or of negative prompts."""
        ...

    def guided(self, positive: Tensor, negative: Tensor, scale: float) -> Tensor:
        """As in `Family`."""
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
        """The float32 parameters that are trained, or those of the behaviour policy, by a name that both share."""
        ...

    def layers(self) -> list[torch.nn.Linear] | None:
        """The linear layers, without bias, whose weights are `parameters("trained")`, in their order; None if others are too."""
        ...

    def trained_state(self) -> dict[str, Tensor]:
        """Return the trained weights on the CPU, by diffusers' keys: an unscaled LoRA, or a transformer."""
        ...

    def origin(self) -> dict[str, Any]:
        """What the trained weights belong to; plain, for JSON: see `policy.origin`."""
        ...

    def load_trained(self, state: dict[str, Tensor]) -> None:
        """Put a `trained_state` into the trained and the behaviour weights.

        Raises:
            CheckpointError: it does not fit.
        """
        ...

    def swapped(self, weights: dict[str, Tensor]) -> AbstractContextManager[None]:
        """For a while, let `weights` stand in the place of the trained."""
        ...


class Family(Protocol):
    """How pipelines of one class encode prompts, call their transformer and decode; stateless beside the pipeline."""

    encoders: tuple[nn.Module, ...]  # the text encoders
    latent_shape: tuple[int, int, int]
    even_times: bool  # the pipeline asks its scheduler for the times 1, 1 - 1/n, ..., 1/n, then shifted
    float16: bool  # its range is enough for the model

    def __init__(self, pipeline: Any, model: ModelConfig) -> None: ...

    @staticmethod
    def left_out(model: ModelConfig) -> tuple[str, ...]:
        """Components of the pipeline that are not needed and not loaded."""
        ...

    @staticmethod
    def downscaling(vae: Mapping[str, Any], transformer: Mapping[str, Any]) -> int:
        """Pixels that one image token spans on a side, by the configurations of the VAE and the transformer."""
        ...

    def encode(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Embeddings of the prompts on the encoders' device; a prompt's rows do not depend on those beside it."""
        ...

    def encode_negative(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Embeddings of negative prompts, alike."""
        ...

    @property
    def guided(self) -> Callable[[Tensor, Tensor, float], Tensor]:
        """Combine the velocities [B, C, H, W] with the prompt and with the negative prompt under guidance.

        The last argument is a scale above 1 that means what it means to the pipeline.
        """
        ...

    def velocity(self, xt: Tensor, t: Tensor, embeddings: PromptEmbeddings) -> Tensor:
        """D xt / d t [B, C, H, W] where xt = (1 - t) x0 + t noise, from inputs in the transformer's dtype."""
        ...

    def decode(self, x0: Tensor) -> Tensor:
        """Pixels [B, 3, H, W], -1 to 1, of latents [B, C, H, W] in the VAE's dtype."""
        ...

    def scheduler_config(self) -> dict[str, Any]:
        """As in `Policy`."""
        ...
