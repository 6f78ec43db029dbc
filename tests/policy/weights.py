"""Copy, compare and change the weights of a policy."""

from typing import Any

import torch
from torch import Tensor


def copy_weights(policy: Any, adapter: str) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in policy.parameters(adapter).items()}


def have_same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def nudge(policy: Any, scale: float = 0.02, seed: int = 0) -> None:
    """Move trained and behaviour weights, each in its own way."""
    draw = torch.Generator().manual_seed(seed)
    for adapter in ("behaviour", "trained"):
        for parameter in policy.parameters(adapter).values():
            parameter.data.add_(scale * torch.randn(parameter.shape, generator=draw))
