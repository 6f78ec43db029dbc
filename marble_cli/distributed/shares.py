"""Share the images of a step or of an evaluation among ranks, each size evenly."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from marble_cli.config.counts import per_process


@dataclass(frozen=True)
class Shares:
    """Which images each rank's rows are; equal rows of all ranks have images of one size.

    So ranks take as many passes over batches of the same shapes, and none waits for another's larger ones.

    Attributes:
        images: [world, rows] int64; padding repeats images of its size.
        everywhere: [world, rows] int64, the same with -1 for padding.
    """

    images: Tensor
    everywhere: Tensor

    def own(self, rank: int) -> list[int]:
        """Return the images of one rank's rows."""
        own: list[int] = self.images[rank].tolist()
        return own


def share(sizes: Sequence[Hashable], world: int, together: int = 1) -> Shares:
    """Share as many images as there are `sizes`, those of one size after the other.

    Of each size, ranks get neighbouring images in their order, and the last ranks are padded.

    Args:
        sizes: of each image.
        world: the number of ranks.
        together: neighbouring images that stay on one rank, from each multiple of this number; they have one
            size, and it is a divisor of their number.
    """
    places: dict[Hashable, list[int]] = {}
    for image, size in enumerate(sizes):
        places.setdefault(size, []).append(image)
    images, real = [], []
    for same in map(torch.tensor, places.values()):
        rows = torch.arange(world * per_process(len(same), world, together)).view(world, -1)
        images.append(same[rows % len(same)])
        real.append(rows < len(same))
    every = torch.cat(images, dim=1)
    return Shares(every, every.where(torch.cat(real, dim=1), -1))
