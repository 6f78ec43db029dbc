"""Pad prompts of different lengths to one length, and trim the padding that a batch does not need."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from marble_cli.policy.base import PromptEmbeddings


def pad_prompts(prompts: Sequence[Tensor], length: int) -> PromptEmbeddings:
    """Pad B prompts [l, D], l <= `length`, to `tokens` [B, `length`, D] with a `mask` [B, `length`] bool."""
    tokens = [functional.pad(prompt, (0, 0, 0, length - len(prompt))) for prompt in prompts]
    lengths = tuple(len(prompt) for prompt in prompts)
    mask = torch.arange(length) < torch.tensor(lengths)[:, None]
    return PromptEmbeddings({"tokens": torch.stack(tokens), "mask": mask.to(tokens[0].device)}, lengths)


def trim_padding(embeddings: PromptEmbeddings) -> tuple[Tensor, Tensor | None]:
    """Return `tokens` [B, L, D] and `mask` [B, L] bool, where L is the length of the longest prompt.

    The mask is None if all prompts have that length.
    """
    tokens, mask, lengths = embeddings.tensors["tokens"], embeddings.tensors["mask"], embeddings.lengths
    assert lengths is not None
    longest = max(lengths)
    return tokens[:, :longest], None if min(lengths) == longest else mask[:, :longest]
