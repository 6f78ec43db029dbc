"""Cut a step into training samples: its images at their own times and noise, in micro-batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from marble_cli.config.counts import times_per_image
from marble_cli.config.enums import TrainingTimes
from marble_cli.objective.image_weights import ImageWeights
from marble_cli.policy.base import PromptEmbeddings, RepeatedEmbeddings
from marble_cli.seeds import generator, noise


@dataclass(frozen=True)
class TrainingSet:
    """The m images that this rank trains on in one step.

    Attributes:
        x0: m clean latents [C, H, W]; equal rows of all ranks have one shape.
        embeddings: of the m prompts.
        indices: [m] int64 places of the images among the step's n.
        draws: [m] int64; images with equal numbers get equal noise.
        times: [m, T] float32 training times of each image.
        samples: n T, the samples of all ranks.
        real: [m] bool, false for padding, which counts nothing; None if there is none.
        everywhere: [world, m] int64 `indices` of every rank, -1 for padding; None if this rank has all.
        weights: of the step's n images; None if each weighs the same.
        negatives: of the m negative prompts, for a guided reference of the KL term.
    """

    x0: Tensor | Sequence[Tensor]
    embeddings: PromptEmbeddings | RepeatedEmbeddings
    indices: Tensor
    draws: Tensor
    times: Tensor
    samples: int
    real: Tensor | None = None
    everywhere: Tensor | None = None
    weights: ImageWeights | None = None
    negatives: PromptEmbeddings | RepeatedEmbeddings | None = None

    def images(self, rows: Tensor) -> Tensor:
        """Return the indices of all ranks' images in these rows, without padding."""
        if self.everywhere is None:
            return self.indices[rows if self.real is None else rows[self.real[rows]]]
        images = self.everywhere[:, rows].flatten()
        return images[images >= 0]


@dataclass(frozen=True)
class NoisedBatch:
    """Noised latents [B, C, H, W] of the images at `indices` [B], each at its own time `t` [B].

    `kl_weight` is that of the `Chunk`, `kl_weights` [B] are those of the images, if they differ. `real` [B]
    is 1 for an image of the step and 0 for padding; None if there is no padding. `negatives` are those of the
    `TrainingSet`, if the micro-batch has a KL term.
    """

    x0: Tensor
    xt: Tensor
    t: Tensor
    embeddings: PromptEmbeddings
    indices: Tensor
    kl_weight: float
    real: Tensor | None = None
    kl_weights: Tensor | None = None
    negatives: PromptEmbeddings | None = None

    def without_padding(self, values: Tensor) -> Tensor:
        """Return `values` [B] with zeros for padding."""
        return values if self.real is None else values * self.real


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
    """One micro-batch.

    Attributes:
        rows: [B] int64, its images in the `TrainingSet`.
        column: of their times.
        kl_weight: weight of its KL term; 0 if it has none.
    """

    rows: Tensor
    column: int
    kl_weight: float = 1.0


def chunks(data: TrainingSet, micro_batch_size: int) -> list[Chunk]:
    """Cut a training set into micro-batches of one size, every image once in each column of times.

    Neighbours, the images of one prompt, go to different micro-batches, so that each of these is a fair
    sample of the step's prompts of its size.
    """
    parts: list[Tensor] = []
    for rows in rows_by_shape(data.x0):
        count = -(-len(rows) // micro_batch_size)
        parts += [rows[first::count] for first in range(count)]
    return [Chunk(rows, column) for column in range(data.times.shape[1]) for rows in parts]


def rows_by_shape(x0: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Return the places of latents of each shape, in their order; the shapes as they first come."""
    places: dict[tuple[int, ...], list[int]] = {}
    for row, latents in enumerate(x0):
        places.setdefault(tuple(latents.shape), []).append(row)
    return [torch.tensor(rows) for rows in places.values()]


def thin_kl(parts: list[Chunk], every: int, offset: int) -> list[Chunk]:
    """Keep the KL term of every `every`-th micro-batch from `offset` on, weighted by `every`.

    Over the `every` offsets each micro-batch keeps its KL term once, so for an offset that is drawn evenly
    the weighted sum of all KL terms has the expectation of their plain sum. The count goes through the
    columns of some images before other images. So if the number of columns is a multiple of `every`, the
    offset chooses whole columns, whatever the size of a micro-batch.

    Args:
        parts: all micro-batches of a rank, column by column.
        every: at most their number.
        offset: in [0, every).
    """
    columns = 1 + max(part.column for part in parts)
    count = len(parts) // columns
    return [
        replace(
            part, kl_weight=float(every) if (i % count * columns + part.column) % every == offset else 0.0
        )
        for i, part in enumerate(parts)
    ]


def draw_kl(parts: list[Chunk], every: int, seed: int, step: int) -> list[Chunk]:
    """Draw the micro-batches that keep their KL term in one step, 1 / `every` of them and at least one.

    The draw depends on seed and step alone, so all ranks, which have equally many micro-batches, keep those
    with the same numbers.
    """
    every = min(every, len(parts))
    offset = int(torch.randint(every, (), generator=generator(seed, "kl", step)))
    return thin_kl(parts, every, offset)


def split(parts: list[Chunk], fraction: float) -> tuple[list[Chunk], list[Chunk]]:
    """Split micro-batches into a share of at least one, evenly spread over them, and the others."""
    chosen = max(1, round(fraction * len(parts)))
    inside = {(2 * i + 1) * len(parts) // (2 * chosen) for i in range(chosen)}
    return (
        [part for i, part in enumerate(parts) if i in inside],
        [part for i, part in enumerate(parts) if i not in inside],
    )


def noised_batches(data: TrainingSet, parts: list[Chunk], seed: int, step: int) -> Iterator[NoisedBatch]:
    """Yield the samples of `parts`, with noise that depends on seed, step, draw and column alone.

    Nothing waits for the device after the first batch. So the noise, which the CPU draws to have the same
    bits for every device, is drawn and copied while the device computes the batch before.
    """
    device, dtype = data.x0[0].device, data.x0[0].dtype
    times, indices = data.times.to(device, dtype), data.indices.to(device)
    kl = None if data.weights is None else data.weights.kl.to(device, dtype)
    real = None if data.real is None else data.real.to(device, dtype)
    rows_on_device = torch.cat([part.rows for part in parts]).to(device)
    for part, rows in zip(parts, rows_on_device.split([len(part.rows) for part in parts]), strict=True):
        x0, t = torch.stack([data.x0[row] for row in part.rows.tolist()]), times[:, part.column][rows]
        eps = noise(seed, f"train{part.column}", step, data.draws[part.rows].tolist(), tuple(x0.shape[1:]))
        if device.type == "cuda":
            eps = eps.pin_memory()
        xt = torch.lerp(x0, eps.to(device, non_blocking=True).to(x0.dtype), t.view(-1, *[1] * (x0.ndim - 1)))
        places = indices[rows]
        kl_weights = None if kl is None else kl[places]
        negatives = None if data.negatives is None or not part.kl_weight else data.negatives[part.rows]
        yield NoisedBatch(
            x0,
            xt,
            t,
            data.embeddings[part.rows],
            places,
            part.kl_weight,
            None if real is None else real[rows],
            kl_weights,
            negatives,
        )
