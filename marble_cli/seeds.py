"""Derive the generator of every random draw of a run from the seed and the purpose of the draw."""

import hashlib

import torch
from torch import Tensor


def generator(seed: int, *key: str | int) -> torch.Generator:
    """Return a CPU generator that depends on `seed` and `key` only, not on ranks or batches."""
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def noise(seed: int, purpose: str, step: int, samples: list[int], shape: tuple[int, ...]) -> Tensor:
    """Draw standard normal noise [len(samples), *shape] float32, with one generator per sample."""
    draws = [
        torch.randn(shape, generator=generator(seed, purpose, step, sample), dtype=torch.float32)
        for sample in samples
    ]
    return torch.stack(draws)
