"""Ask a reward of pictures about the frames of videos, and make one score of a video of theirs."""

from collections.abc import Iterator, Sequence

import torch

from marble_cli.config.enums import FrameUse
from marble_cli.rewards.answers import Explained, out_of_range
from marble_cli.rewards.api import Batch


def single_frames(batch: Batch, use: FrameUse) -> Iterator[Batch]:
    """Yield batches of as many pictures as there are videos: one frame of each, in the videos' order.

    Args:
        batch: with `frames` [B, F, 3, H, W], whose middle ones are its `images`.
        use: `mean` gives F batches, the others one.
    """
    assert batch.frames is not None
    if use is FrameUse.middle:
        yield batch._replace(frames=None)
        return
    for frames in batch.frames.unbind(1)[: 1 if use is FrameUse.first else None]:
        yield batch._replace(images=frames, frames=None)


def mean_over_frames(answers: Sequence[list[Explained]]) -> list[Explained]:
    """Return each video's mean score over the frames that its reward applies to, for each of A rewards.

    A reward that applies to no frame does not apply to the video, and one that failed on a frame failed on
    the video: a mean of the others would be a score of another video.

    Args:
        answers: of F frames as `parse_aspects` returns them, A of [B] float64 each.
    """
    if len(answers) == 1:
        return answers[0]
    means = []
    for parts in zip(*answers, strict=True):
        scores = torch.stack([score for score, _ in parts])  # [F, B]
        failed = out_of_range(scores).any(0)
        # The first frame that failed with a reason tells a video's.
        reasons = {i: why for _, own in reversed(parts) for i, why in own.items()}
        means.append((scores.nanmean(0).where(~failed, torch.inf), reasons))
    return means
