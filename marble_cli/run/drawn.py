"""The images of one step: which rank holds which, their scores, and how they become training samples."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from marble_cli.config.counts import per_process
from marble_cli.config.enums import TrainingNoise
from marble_cli.config.schema import RunConfig
from marble_cli.objective.image_weights import ImageWeights
from marble_cli.policy.base import PromptEmbeddings, RepeatedEmbeddings
from marble_cli.rewards.scorer import Scores
from marble_cli.rollout.collect import Samples
from marble_cli.step.batches import TrainingSet, training_times


@dataclass(frozen=True)
class Drawn:
    """The n images of a step.

    Attributes:
        samples: this rank's rows.
        scores: of all n images.
        groups: [n] int64, the prompt of each image.
        everywhere: [world, rows] int64, the image in each rank's row; -1 for padding and replaced images.
        redrawn: groups that were drawn again, in all attempts.
        failed: [K] scores that failed, also those of replaced images.
        drawing: seconds of drawing.
        waiting: seconds of waiting for scores.
    """

    samples: Samples
    scores: Scores
    groups: Tensor
    everywhere: Tensor
    redrawn: int
    failed: Tensor
    drawing: float
    waiting: float

    def replaced_by(self, images: Tensor, other: "Drawn") -> "Drawn":
        """Put `other` in the place of `images` [m] int64, whose images it has in their order."""
        places = images[other.everywhere.clamp(min=0)].where(other.everywhere >= 0, -1)
        kept = self.everywhere.where(~torch.isin(self.everywhere, images), -1)
        scores = {}
        for field in ("values", "applicable", "failed"):
            scores[field] = getattr(self.scores, field).clone()
            scores[field][:, images] = getattr(other.scores, field)
        return Drawn(
            _joined(self.samples, other.samples),
            Scores(self.scores.names, **scores),
            self.groups,
            torch.cat([kept, places], dim=1),
            self.redrawn + len(self.groups[images].unique()),
            self.failed + other.failed,
            self.drawing + other.drawing,
            self.waiting + other.waiting,
        )

    def only(self, trained: Tensor, rank: int) -> "Drawn":
        """Keep the images with true in `trained` [n] bool, in their rows' order.

        Ranks hold equally many rows afterwards: padding comes last on those with fewer images.
        """
        used = (self.everywhere >= 0) & trained[self.everywhere.clamp(min=0)]
        rows = (~used).int().argsort(dim=1, stable=True)[:, : int(used.sum(1).max())]
        everywhere = self.everywhere.where(used, -1).gather(1, rows)
        return replace(self, samples=_chosen(self.samples, rows[rank]), everywhere=everywhere)

    def training_set(
        self, config: RunConfig, step: int, times: Tensor, weights: ImageWeights | None, rank: int
    ) -> TrainingSet:
        """Draw training times and noise for this rank's rows, of which padding comes last.

        Args:
            config: of the run.
            step: the optimizer step.
            times: [S] float32, the solver's.
            weights: of the n images; None if all weigh the same.
            rank: this rank.
        """
        trainer, algorithm = config.trainer, config.algorithm
        own = self.everywhere[rank].clamp(min=0)
        draws = self.groups[own] if algorithm.training_noise is TrainingNoise.group else own
        chosen = training_times(
            times,
            trainer.timestep_fraction,
            trainer.times_per_image,
            draws.tolist(),
            trainer.seed,
            step,
            algorithm.training_times,
        )
        return TrainingSet(
            self.samples.x0,
            self.samples.embeddings,
            own,
            draws,
            chosen,
            samples=len(self.groups) * chosen.shape[1],
            padding=int((self.everywhere[rank] < 0).sum()),
            everywhere=self.everywhere,
            weights=weights,
            negatives=self.samples.negatives,
        )


def rows_of_ranks(count: int, world: int, together: int) -> Tensor:
    """Return [world, rows] int64, which of `count` images each rank's rows are (`Ranks.rank_indices`).

    Rows of padding are -1.
    """
    rows = torch.arange(world * per_process(count, world, together)).view(world, -1)
    return rows.where(rows < count, -1)


def _chosen(samples: Samples, rows: Tensor) -> Samples:
    def chosen(embeddings: RepeatedEmbeddings) -> RepeatedEmbeddings:
        return RepeatedEmbeddings(embeddings.distinct, embeddings.rows[rows])

    return Samples(
        samples.x0[rows.to(samples.x0.device)],
        samples.images[rows],
        chosen(samples.embeddings),
        [samples.prompts[i] for i in rows.tolist()],
        samples.pending,
        None if samples.negatives is None else chosen(samples.negatives),
    )


def _joined(one: Samples, other: Samples) -> Samples:
    def joined(first: RepeatedEmbeddings, second: RepeatedEmbeddings) -> RepeatedEmbeddings:
        distinct = PromptEmbeddings.joined([first.distinct, second.distinct])
        return RepeatedEmbeddings(distinct, torch.cat([first.rows, second.rows + len(first.distinct)]))

    pairs = one.negatives, other.negatives
    return Samples(
        torch.cat([one.x0, other.x0]),
        torch.cat([one.images, other.images]),
        joined(one.embeddings, other.embeddings),
        [*one.prompts, *other.prompts],
        [*one.pending, *other.pending],
        None if pairs[0] is None or pairs[1] is None else joined(pairs[0], pairs[1]),
    )
