"""Define `Policy`, an image model that is trained, and `Family`, what one kind of image model adds to it."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from marble_cli.config.schema import ModelConfig
from marble_cli.pictures import Picture
from marble_cli.policy.diffusers_types import Pipeline, TextEncoder

Pictures = Sequence[Picture]  # of one prompt, in their order
Images = Sequence[Sequence[Tensor]]  # of B prompts, uint8 [3, H, W] on the CPU, each as `seen_sizes` says
Adapter = Literal["trained", "behaviour"] | None  # which weights act; None: the frozen model as loaded


@dataclass(frozen=True)
class PromptEmbeddings:
    """Hold the network's inputs for B prompts.

    Indexing with positions on the CPU waits for no device.

    Attributes:
        tensors: [B, ...] by name, in the model's dtype; masks are bool. Names depend on the family.
        lengths: each prompt's tokens, if `tensors` are padded with others: known without asking the device.
    """

    tensors: Mapping[str, Tensor]
    lengths: tuple[int, ...] | None = None

    def __getitem__(self, index: Tensor | slice) -> "PromptEmbeddings":
        lengths = self.lengths
        if lengths is not None:
            chosen = range(len(lengths))[index] if isinstance(index, slice) else index.tolist()
            lengths = tuple(lengths[i] for i in chosen)
        if isinstance(index, Tensor):
            index = _to_device(index, self.device)
        return PromptEmbeddings({name: tensor[index] for name, tensor in self.tensors.items()}, lengths)

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def each(self) -> list["PromptEmbeddings"]:
        """Return those of one prompt after the other."""
        return [self[row : row + 1] for row in range(len(self))]

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors.values())).device

    @classmethod
    def joined(cls, parts: Sequence["PromptEmbeddings"]) -> "PromptEmbeddings":
        """Return the prompts of all parts, in their order."""
        names, lengths = parts[0].tensors, [part.lengths for part in parts if part.lengths is not None]
        tensors = {name: torch.cat([part.tensors[name] for part in parts]) for name in names}
        return cls(tensors, tuple(chain.from_iterable(lengths)) if lengths else None)


def count_tokens(mask: Tensor) -> tuple[int, ...]:
    """Return the tokens of B prompts from their mask [B, L] bool; this waits for the mask's device."""
    return tuple(mask.sum(1).tolist())


def _to_device(index: Tensor, device: torch.device) -> Tensor:
    """Copy positions to a device, from memory that it reads without the CPU waiting for it."""
    if device.type == "cuda" and index.device.type == "cpu":
        index = index.pin_memory()
    return index.to(device, non_blocking=True)


@dataclass(frozen=True)
class RepeatedEmbeddings:
    """Hold the embeddings of n samples, many of one prompt: sample i has those of `distinct[rows[i]]`.

    Those of pictures of several sizes or numbers differ in shape, and are not asked for at once.
    """

    distinct: Sequence[PromptEmbeddings]  # of one prompt each
    rows: Tensor  # [n] int64, on the CPU

    def __getitem__(self, index: Tensor | slice) -> PromptEmbeddings:
        # An index on another device is right, and waits for that device.
        rows = self.rows[index.cpu() if isinstance(index, Tensor) else index]
        return PromptEmbeddings.joined([self.distinct[row] for row in rows.tolist()])

    def shape_of(self, row: int) -> tuple[torch.Size, ...]:
        """Return the shapes of the tensors of one sample."""
        return tuple(tensor.shape for tensor in self.distinct[int(self.rows[row])].tensors.values())

    def chosen(self, rows: Tensor) -> "RepeatedEmbeddings":
        """Return the samples at `rows` [m] int64, in that order."""
        return RepeatedEmbeddings(self.distinct, self.rows[rows])

    @classmethod
    def joined(cls, parts: Sequence["RepeatedEmbeddings"]) -> "RepeatedEmbeddings":
        """Return the samples of all parts, in their order."""
        starts = accumulate((len(part.distinct) for part in parts), initial=0)
        rows = [part.rows + start for part, start in zip(parts, starts, strict=False)]
        return cls([one for part in parts for one in part.distinct], torch.cat(rows))

    def __len__(self) -> int:
        return len(self.rows)


class Trainable(Protocol):
    """The weights that are trained: a pair of LoRA adapters, or float32 copies of the whole network."""

    layers: list[nn.Linear] | None  # see `Policy.layers`

    def parameters(self, adapter: Literal["trained", "behaviour"]) -> dict[str, nn.Parameter]:
        """Return the parameters as `Policy.parameters` does."""

    def activate(self, adapter: Adapter) -> None:
        """Make the pipeline's network compute with these weights."""

    def named(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Name values of the parameters as `Policy.named` does."""

    def state(self) -> dict[str, Tensor]:
        """Return the trained weights as `Policy.trained_state` does."""

    def load(self, state: dict[str, Tensor]) -> None:
        """Load weights as `Policy.load_trained` does."""


class Policy(Protocol):
    """A flow model over latents with trained, behaviour and frozen weights."""

    device: torch.device
    dtype: torch.dtype  # that the network computes in
    resolution: int | str  # the size of images in pixels
    latent_shape: tuple[int, ...]  # (C, H, W), or (C, F, H, W) of videos, as below [B, C, H, W] are theirs
    tokens: int  # image tokens of the network; latents of a UNet
    even_times: bool  # see `Family`
    conditions: bool  # see `Family`
    frames: int | None  # of a video; None if the model draws pictures
    fps: int | None  # frames per second of videos
    intact: bool  # whether the trained weights are in their place; false while others are swapped in

    @property
    def compiled(self) -> bool:
        """Whether the network's blocks are compiled."""
        ...

    def prepare(
        self,
        prompts: Sequence[str],
        negatives: Sequence[str] = (),
        pictures: Sequence[Pictures] | None = None,
    ) -> None:
        """Encode prompts and negative prompts of later steps into the embedding cache, if there is one.

        `pictures` are those of the prompts, and of the negative prompts, in the same order.
        """
        ...

    def encode(
        self, prompts: Sequence[str], pictures: Sequence[Pictures] | None = None, *, negative: bool = False
    ) -> PromptEmbeddings:
        """Return the embeddings of prompts, or of negative prompts, with pictures of one layout."""
        ...

    def layout(self, pictures: Pictures) -> Hashable:
        """Return what the pictures of prompts have in common whose embeddings have one shape."""
        ...

    def guided(self, positive: Tensor, negative: Tensor, scale: float) -> Tensor:
        """Combine two velocities as `Family.guided` does."""
        ...

    def velocity(self, xt: Tensor, t: Tensor, embeddings: PromptEmbeddings, adapter: Adapter) -> Tensor:
        """Return the velocity [B, C, H, W] float32 at `xt` [B, C, H, W] and times `t` [B] in (0, 1]."""
        ...

    def decode(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Return uint8 images [B, 3, H, W] or frames [B, F, 3, H, W], and [B] bool if finite, on the CPU."""
        ...

    def scheduler_config(self) -> dict[str, object]:
        """Return the configuration of the model's scheduler, by diffusers' keys.

        `prediction_type` is `epsilon` or `v_prediction` unless the network predicts a velocity.
        """
        ...

    def parameters(self, adapter: Literal["trained", "behaviour"]) -> dict[str, torch.nn.Parameter]:
        """Return the float32 parameters of the trained or the behaviour policy; both have the same names."""
        ...

    def layers(self) -> list[torch.nn.Linear] | None:
        """Return the linear layers without bias whose weights are `parameters("trained")`, in that order.

        None if other parameters are trained too.
        """
        ...

    def named(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `values` of the trained parameters by the keys of `trained_state`, with its buffers.

        Nothing is copied: with sharded parameters, values and buffers are as this rank holds them.
        """
        ...

    def trained_state(self) -> dict[str, Tensor]:
        """Return the trained weights on the CPU, by diffusers' keys: an unscaled LoRA, or a network."""
        ...

    def resized(self, resolution: int | str) -> "Policy":
        """Return a policy with the same weights that draws images of another size.

        `velocity` takes latents of any size that `count_image_tokens` accepts, whatever the policy's own is.

        Raises:
            RequestError: the resolution does not fit the model; the message names `evaluation.resolution`.
        """
        ...

    def provenance(self) -> dict[str, Any]:
        """Return what the trained weights belong to, ready for JSON; see `policy.provenance`."""
        ...

    def load_trained(self, state: dict[str, Tensor]) -> None:
        """Load a `trained_state` into the trained and the behaviour weights.

        Raises:
            CheckpointError: the state does not fit.
        """
        ...

    def swapped(self, weights: dict[str, Tensor]) -> AbstractContextManager[None]:
        """Replace the trained weights by `weights` inside a `with` block."""
        ...


class Family(Protocol):
    """How pipelines of one class encode prompts, call their network and decode latents."""

    network: str  # the name of the network that is trained in the pipeline: transformer or unet
    text: str  # tokens of prompts: long (`model.max_sequence_length`), clip (CLIP's 77), or both
    encoders: tuple[TextEncoder, ...]  # the text encoders
    conditions: bool  # whether its models start from pictures, which `encode` is given
    even_times: bool  # the pipeline shifts the times 1, 1 - 1/n, ..., 1/n instead of its scheduler's own
    float16: bool  # whether the model's values stay within float16's range
    float32_latents: bool  # `velocity` takes xt in float32 and rounds what it gives to the network
    pipeline: Pipeline
    latent_shape: tuple[int, ...]  # (C, H, W) of latents at `model.resolution`; of videos see `policy.video`

    def __init__(self, pipeline: Pipeline, model: ModelConfig) -> None: ...

    @staticmethod
    def left_out(model: ModelConfig) -> tuple[str, ...]:
        """Return the names of the pipeline's components that are not loaded because nothing needs them."""
        return ()

    @staticmethod
    def downscaling(vae: Mapping[str, Any], network: Mapping[str, Any]) -> int:
        """Return the pixels that an image token spans on a side, from both configurations."""
        ...

    def encode(self, prompts: Sequence[str], images: Images | None = None) -> PromptEmbeddings:
        """Return the prompts' embeddings on the encoders' device; no row depends on the other prompts.

        Args:
            prompts: B texts.
            images: with `conditions`, the pictures that prompts start from, of one layout. What the network
                needs of them is among the embeddings' tensors.
        """
        ...

    def encode_negative(self, prompts: Sequence[str], images: Images | None = None) -> PromptEmbeddings:
        """Return the embeddings of negative prompts, as `encode` does of prompts."""
        return self.encode(prompts, images)

    @property
    def guided(self) -> Callable[[Tensor, Tensor, float], Tensor]:
        """Combine the velocities [B, C, H, W] of the prompt and of the negative prompt under guidance.

        The last argument is a scale above 1, with the meaning it has in the pipeline.
        """
        ...

    def velocity(self, xt: Tensor, t: Tensor, embeddings: PromptEmbeddings) -> Tensor:
        """Return d xt / d t [B, C, H, W], where xt = (1 - t) x0 + t noise.

        `xt` may have any size, and has the network's dtype, or float32 with `float32_latents`.
        """
        ...

    def decode(self, x0: Tensor) -> Tensor:
        """Return pixels [B, 3, H, W] in [-1, 1] from latents [B, C, H, W] in the VAE's dtype."""
        ...

    def scheduler_config(self) -> dict[str, Any]:
        """Return the configuration of the scheduler as `Policy.scheduler_config` does."""
        return dict(self.pipeline.scheduler.config)
