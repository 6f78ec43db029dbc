"""Show videos as pictures, and write them as MP4 files."""

from pathlib import Path

import torch
from torch import Tensor

from marble_cli.errors import RequestError
from marble_cli.optional import require

STRIP = 4  # frames of a strip


def middle_frame(frames: Tensor) -> Tensor:
    """Return the frame in the middle, [..., 3, H, W], of videos [..., F, 3, H, W]; the later one of two."""
    return frames.select(-4, frames.shape[-4] // 2)


def strip(frames: Tensor) -> Tensor:
    """Return frames of a video [F, 3, H, W] side by side: evenly spread, from the first to the last."""
    places = torch.linspace(0, len(frames) - 1, min(STRIP, len(frames))).round().long()
    return torch.cat([*frames[places]], dim=2)


def find_mp4_problem() -> str | None:
    """Return why no MP4 file can be written, or None if one can."""
    try:
        require("imageio_ffmpeg", "an MP4 file")
    except RequestError as error:
        return str(error)
    return None


def write_mp4(file: Path, frames: Tensor, fps: int) -> None:
    """Write a video as H.264 with a quarter of the colours' resolution, which every player shows.

    Args:
        file: to write.
        frames: uint8 [F, 3, H, W], with even sides.
        fps: frames per second.

    Raises:
        OSError: it cannot be written.
        RequestError: the optional package is not installed.
    """
    ffmpeg = require("imageio_ffmpeg", "an MP4 file")
    height, width = frames.shape[2:]
    writer = ffmpeg.write_frames(
        str(file), (width, height), fps=fps, quality=8, macro_block_size=2, ffmpeg_log_level="error"
    )
    writer.send(None)
    for frame in frames:
        writer.send(frame.permute(1, 2, 0).contiguous().numpy())
    writer.close()
