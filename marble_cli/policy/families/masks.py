"""Prompts of different lengths as rows of one length, and back to no more than a batch needs."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from marble_cli.policy.base import PromptEmbeddings


def padded(prompts: Sequence[Tensor], length: int) -> PromptEmbeddings:
    """`tokens` [B, `length`, D] and their `mask` [B, `length`] bool of B prompts [l, D], l at most `length`."""
    tokens = [functional.pad(prompt, (0, 0, 0, length - len(prompt))) for prompt in prompts]
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=prompts[0].device)
    mask = torch.arange(length, device=lengths.device) < lengths[:, None]
    return PromptEmbeddings({"tokens": torch.stack(tokens), "mask": mask})


def trimmed(embeddings: PromptEmbeddings) -> tuple[Tensor, Tensor | None]:
    """`tokens` [B, L, D] and `mask` [B, L] up to the end of the longest prompt; no mask where all are as long."""
    mask = embeddings.tensors["mask"].bool()
    length = int(mask.sum(1).max())
    mask = mask[:, :length]
    return embeddings.tensors["tokens"][:, :length], None if mask.all() else mask
