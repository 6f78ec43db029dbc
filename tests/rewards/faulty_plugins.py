"""Reward plugins that `marble rewards check` is for: each fails one of its checks, or is let off one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.rewards.sample_plugins import FailsInPart, Raises, Returns, brightness

__all__ = ["FailsInPart", "Raises", "Returns"]  # which fail a check, too


class Drifts:
    """Scores grow from call to call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, prompts: Sequence[str]) -> list[float]:
        self.calls += 1
        return [float(self.calls)] * len(prompts)


def standardised(images: Tensor) -> Tensor:
    """Brightness less the batch's mean: it depends on the images beside it."""
    values = brightness(images)
    return values - values.mean()


class WholeGroups:
    """As `standardised`, and says so."""

    groupwise = True

    def __call__(self, images: Tensor) -> Tensor:
        return standardised(images)


def ascending(images: Tensor) -> Tensor:
    """Scores in ascending order, whatever the order of the images."""
    return brightness(images).sort().values


class OutOfRange:
    """Brightness, said to lie between 0 and 1."""

    range = (0.0, 1.0)

    def __call__(self, images: Tensor) -> Tensor:
        return brightness(images)


def infinite(images: Tensor) -> Tensor:
    """One score is infinite."""
    values = brightness(images)
    values[1] = torch.inf
    return values


def never_applies(images: Tensor) -> Tensor:
    """NaN for every image."""
    return torch.full((len(images),), torch.nan)


def blackens(images: Tensor) -> Tensor:
    """Writes on the images."""
    values = brightness(images)
    images.zero_()
    return values


def pops(metadata: Sequence[dict[str, Any]]) -> list[float]:
    """Takes a key out of the metadata."""
    return [float(len(str(row.pop("text", "")))) for row in metadata]


def drops(prompts: list[str]) -> list[float]:
    """Clears the list of prompts."""
    values = [1.0] * len(prompts)
    prompts.clear()
    return values


def only_square(images: Tensor) -> Tensor:
    """Refuses what is not 64 x 64."""
    return brightness(images.reshape(-1, 3, 64, 64))


def truths(images: Tensor) -> Tensor:
    """True where an image is bright."""
    return brightness(images) > 100


def few(images: Tensor) -> Tensor:
    """Eight images at most."""
    if len(images) > 8:
        raise ValueError("too many images")
    return brightness(images)


def flat_view(images: Tensor) -> Tensor:
    """Takes for granted how images lie in memory."""
    return images.view(len(images), -1).float().mean(1)


def darkness(images: Tensor) -> Tensor:
    """Infinite where an image is black."""
    return 1 / brightness(images)


def first_word(prompts: Sequence[str]) -> list[float]:
    """Length of the first word, which an empty prompt does not have."""
    return [float(len(prompt.split()[0])) for prompt in prompts]


def endless(prompts: Sequence[str]) -> list[float]:
    """Infinite for long prompts."""
    return [float("inf") if len(prompt) > 1000 else 1.0 for prompt in prompts]


def hungry(images: Tensor) -> Tensor:
    """Takes eight MiB an image."""
    return torch.ones(len(images), 2 << 20).mean(1) + brightness(images)
