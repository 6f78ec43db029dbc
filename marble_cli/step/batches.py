"""Cut a step into training samples: its images at their own times and noise, in micro-batches."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from marble_cli.config.counts import times_per_image
from marble_cli.config.enums import TrainingTimes
from marble_cli.policy.base import PromptEmbeddings, RepeatedEmbeddings
from marble_cli.seeds import generator, noise


@dataclass(frozen=True)
class TrainingSet:
    """The m images that this rank trains on in one step.

    Attributes:
        x0: [m, C, H, W] clean latents.
        embeddings: of the m prompts.
        indices: [m] int64 places of the images among the step's n.
        draws: [m] int64; images with equal numbers get equal noise.
        times: [m, T] float32 training times of each image.
        samples: n T, the samples of all ranks.
    """

    x0: Tensor
    embeddings: PromptEmbeddings | RepeatedEmbeddings
    indices: Tensor
    draws: Tensor
    times: Tensor
    samples: int


@dataclass(frozen=True)
class NoisedBatch:
    """Noised latents [B, C, H, W] of the images at `indices` [B], each at its own time `t` [B]."""

    x0: Tensor
    xt: Tensor
    t: Tensor
    embeddings: PromptEmbeddings
    indices: Tensor


def training_times(
    times: Tensor,
    fraction: float,
    per_image: int | None,
    draws: list[int],
    seed: int,
    step: int,
    rule: TrainingTimes = TrainingTimes.leading,
) -> Tensor:
    """Choose each image's training times among the solver's.

    Args:
        times: [S] float32, the solver's times, falling.
        fraction: share of them that is trained on (0.99 is all but one, of up to 100).
        per_image: how many each image gets, drawn without replacement; None takes the whole share.
        draws: of each image; images with equal numbers get the same times.
        seed: the run's seed.
        step: the optimizer step.
        rule: `leading` draws from the share next to the noise, so that no image gets the last times; `any`
            draws from all times, so that each image leaves out its own (as published with arXiv 2509.16117).

    Returns:
        [len(draws), T] float32.
    """
    usable, count = times_per_image(len(times), fraction, per_image)
    pool = times[:usable] if rule is TrainingTimes.leading else times
    rows = [
        pool[torch.randperm(len(pool), generator=generator(seed, "times", step, i))[:count]] for i in draws
    ]
    return torch.stack(rows)


@dataclass(frozen=True)
class Chunk:
    """One micro-batch: images by their `rows` [B] in the `TrainingSet`, at their times of one `column`."""

    rows: Tensor
    column: int


def chunks(data: TrainingSet, micro_batch_size: int) -> list[Chunk]:
    """Cut a training set into micro-batches, every image once in each column of times.

    Neighbours, the images of one prompt, go to different micro-batches, so that each of these is a fair
    sample of the step's prompts.
    """
    count = -(-len(data.x0) // micro_batch_size)
    return [
        Chunk(torch.arange(first, len(data.x0), count), column)
        for column in range(data.times.shape[1])
        for first in range(count)
    ]


def split(parts: list[Chunk], fraction: float) -> tuple[list[Chunk], list[Chunk]]:
    """Split micro-batches into a share of at least one, evenly spread over them, and the others."""
    chosen = max(1, round(fraction * len(parts)))
    inside = {(2 * i + 1) * len(parts) // (2 * chosen) for i in range(chosen)}
    return (
        [part for i, part in enumerate(parts) if i in inside],
        [part for i, part in enumerate(parts) if i not in inside],
    )


def noised_batches(data: TrainingSet, parts: list[Chunk], seed: int, step: int) -> Iterator[NoisedBatch]:
    """Yield the samples of `parts`, with noise that depends on seed, step, draw and column alone."""
    shape = tuple(data.x0.shape[1:])
    for part in parts:
        rows = part.rows
        x0 = data.x0[rows]
        t = data.times[rows, part.column].to(x0)
        eps = noise(seed, f"train{part.column}", step, data.draws[rows].tolist(), shape).to(x0)
        xt = torch.lerp(x0, eps, t[:, None, None, None])
        yield NoisedBatch(x0, xt, t, data.embeddings[rows], data.indices[rows])
