"""Show videos as pictures, and write them as MP4 files."""

import torch
from torch import Tensor

STRIP = 5  # frames of a strip


def middle_frame(frames: Tensor) -> Tensor:
    """Return the frame in the middle, [..., 3, H, W], of videos [..., F, 3, H, W]; the later one of two."""
    return frames.select(-4, frames.shape[-4] // 2)


def strip(frames: Tensor) -> Tensor:
    """Return frames of a video [F, 3, H, W] side by side: evenly spread, from the first to the last."""
    places = torch.linspace(0, len(frames) - 1, min(STRIP, len(frames))).round().long()
    return torch.cat([*frames[places]], dim=2)
