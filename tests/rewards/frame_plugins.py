"""Reward plugins that look at videos, and rewards of pictures that say what they were shown."""

from typing import Any

import torch
from torch import Tensor


def motion(frames: Tensor, images: Tensor) -> Tensor:
    """How much neighbouring frames differ; the images are the frames in the middle."""
    assert torch.equal(images, frames[:, frames.shape[1] // 2])
    return frames.float().diff(dim=1).abs().mean((1, 2, 3, 4))


def maybe_motion(images: Tensor, frames: Tensor | None = None) -> Tensor:
    """As `motion`, and 0 without frames."""
    return torch.zeros(len(images)) if frames is None else motion(frames, images)


def corner(images: Tensor) -> list[Any]:
    """The first value of a picture; 0 says that it does not apply, and above 250 that it failed."""
    values = images[:, 0, 0, 0].tolist()
    return [RuntimeError("too bright") if v > 250 else v or float("nan") for v in values]


def whole_batch(batch: Any) -> Tensor:
    """Of a reward that is given the whole batch and asks for no frames."""
    assert batch.frames is None
    return batch.images[:, 0, 0, 0].float()


def still(frames: Tensor) -> Tensor:
    """Changes the frames."""
    frames.zero_()
    return torch.zeros(len(frames))


class Shelf:
    """A tracker that notes what it is given of an evaluation."""

    def __init__(self, run: Any) -> None:
        self.file = run.folder / "shelf.txt"

    def write(self, metrics: dict[str, Any]) -> None: ...

    def images(self, step: int, images: Tensor, captions: list[str]) -> None:
        self._note(f"{step} {list(images.shape)} {captions}")

    def videos(self, step: int, files: list[Any], captions: list[str]) -> None:
        self._note(f"{step} {[file.name for file in files]} {captions}")

    def close(self) -> None: ...

    def _note(self, line: str) -> None:
        with self.file.open("a") as file:
            file.write(line + "\n")
