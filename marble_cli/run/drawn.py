"""The images of one step: which rank holds which, their scores, and how they become training samples."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from marble_cli.config.enums import TrainingNoise
from marble_cli.config.schema import RunConfig
from marble_cli.objective.image_weights import ImageWeights
from marble_cli.policy.base import RepeatedEmbeddings
from marble_cli.rewards.scorer import Scores
from marble_cli.rollout.collect import Rollout
from marble_cli.rollout.samples import Samples
from marble_cli.step.batches import TrainingSet, rows_by_shape, training_times


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

        Ranks hold equally many rows of a shape afterwards: those with fewer images have padding after them.
        """
        used = (self.everywhere >= 0) & trained[self.everywhere.clamp(min=0)]
        parts = []
        for same in rows_by_shape(self.samples.x0, self.samples.embeddings):
            order = (~used[:, same]).int().argsort(dim=1, stable=True)
            parts.append(same[order[:, : int(used[:, same].sum(1).max())]])
        rows = torch.cat(parts, dim=1)
        everywhere = self.everywhere.where(used, -1).gather(1, rows)
        return replace(self, samples=_chosen(self.samples, rows[rank]), everywhere=everywhere)

    def training_set(
        self,
        config: RunConfig,
        step: int,
        rollout: Rollout,
        weights: ImageWeights | None,
        rank: int,
    ) -> TrainingSet:
        """Draw training times and noise for this rank's rows.

        Args:
            config: of the run.
            step: the optimizer step.
            rollout: whose solver's times these are; they may depend on the size of images.
            weights: of the n images; None if all weigh the same.
            rank: this rank.
        """
        trainer, algorithm = config.trainer, config.algorithm
        own = self.everywhere[rank].clamp(min=0)
        draws = self.groups[own] if algorithm.training_noise is TrainingNoise.group else own
        parts, order = [], list[int]()
        for sized, rows in rollout.by_shape(self.samples.prompts):
            part = training_times(
                sized.times(),
                trainer.timestep_fraction,
                trainer.times_per_image,
                draws[rows].tolist(),
                trainer.seed,
                step,
                algorithm.training_times,
            )
            parts.append(part)
            order += rows
        chosen = torch.cat(parts)[torch.tensor(order).argsort()]
        real = self.everywhere[rank] >= 0
        # An image that is not finite has no score, so its loss has the factor 0; but 0 x NaN is NaN.
        finite = [latent.nan_to_num(0.0, 0.0, 0.0) for latent in self.samples.x0]
        return TrainingSet(
            finite,
            self.samples.embeddings,
            own,
            draws,
            chosen,
            samples=len(self.groups) * chosen.shape[1],
            real=None if real.all() else real,
            everywhere=self.everywhere,
            weights=weights,
            negatives=self.samples.negatives,
        )


def _chosen(samples: Samples, rows: Tensor) -> Samples:
    places = rows.tolist()
    return Samples(
        [samples.x0[i] for i in places],
        [samples.images[i] for i in places],
        samples.embeddings.chosen(rows),
        [samples.prompts[i] for i in places],
        samples.pending,
        samples.drawn,
        None if samples.negatives is None else samples.negatives.chosen(rows),
    )


def _joined(one: Samples, other: Samples) -> Samples:
    pairs = one.negatives, other.negatives
    return Samples(
        [*one.x0, *other.x0],
        [*one.images, *other.images],
        RepeatedEmbeddings.joined([one.embeddings, other.embeddings]),
        [*one.prompts, *other.prompts],
        [*one.pending, *other.pending],
        torch.cat([one.drawn, other.drawn + len(one.drawn)]),
        None if pairs[0] is None or pairs[1] is None else RepeatedEmbeddings.joined([pairs[0], pairs[1]]),
    )
