"""Define `EditingFamily`, what families add whose models start from pictures."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count, takewhile
from typing import Protocol, cast

import torch
from torch import Tensor

from marble_cli.config.resolution import read_resolution
from marble_cli.config.schema import ModelConfig
from marble_cli.policy.base import Family


class EditingFamily(Family, Protocol):
    """A family with `conditions`; embeddings have the latents of pictures as `name_latents` names them."""

    model: ModelConfig
    optional: bool  # whether its models also draw from texts alone
    most_pictures: int | None  # of a prompt; None for any number

    def condition_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Return (C, H, W) of the latents of a picture of this size."""
        ...

    def picture_tokens(self, width: int, height: int) -> int:
        """Return the number of tokens that a picture of this size adds to its prompt's."""
        ...


def as_editing(family: Family) -> EditingFamily | None:
    """Return the family if its models start from pictures."""
    return cast(EditingFamily, family) if family.conditions else None


def image_size(family: EditingFamily) -> tuple[int, int]:
    """Return the width and height of the family's images."""
    size = read_resolution(family.model.resolution)
    return size.width, size.height


def name_latents(rows: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    """Name the latents [1, C, H, W] of the pictures of B prompts, which have equal numbers and shapes.

    Returns:
        [B, C, H, W] by name, a name for each place.
    """
    places = zip(*rows, strict=True)
    return {name: torch.cat(latents) for name, latents in zip(_names(), places, strict=False)}


def latents_of(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the latents [B, C, H, W] of pictures that `name_latents` named, in their order; none without."""
    return [tensors[name] for name in takewhile(tensors.__contains__, _names())]


def _names() -> Iterator[str]:
    yield "condition"
    yield from (f"condition_{place}" for place in count(2))
