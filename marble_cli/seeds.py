"""Every random draw of a run comes from a generator derived from the seed and what the draw is for."""

import hashlib

import torch
from torch import Tensor


def generator(seed: int, *key: str | int) -> torch.Generator:
    """A CPU generator that depends on `seed` and `key` alone, so that ranks and batching do not matter."""
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def noise(seed: int, purpose: str, step: int, samples: list[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise [len(samples), *shape] float32, one generator a sample."""
    return torch.stack(
        [
            torch.randn(shape, generator=generator(seed, purpose, step, i), dtype=torch.float32)
            for i in samples
        ]
    )
