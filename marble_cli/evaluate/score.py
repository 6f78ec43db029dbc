"""Score a policy on held-out prompts, with noise that depends only on the prompt's index."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from marble_cli.data.prompts import Prompt
from marble_cli.distributed.ranks import Ranks
from marble_cli.policy.base import Adapter
from marble_cli.rewards.scorer import Scorer, Scores
from marble_cli.rollout.collect import Rollout

# Largest number of images of an evaluation that are kept to be looked at.
SHOWN = 48


def shown(count: int) -> list[int]:
    """Return the indices, among `count` prompts, whose images are kept to be looked at."""
    return list(range(0, count, max(1, -(-count // SHOWN))))


@dataclass(frozen=True)
class Evaluation:
    """Scores [K, n] of one image per prompt.

    `images`, uint8 [m, 3, H, W], are those at the `shown` indices.
    """

    prompts: list[Prompt]
    images: Tensor
    scores: Scores

    @property
    def captions(self) -> list[str]:
        """Prompts of `images`."""
        return [self.prompts[i].text for i in shown(len(self.prompts))]

    def summary(self) -> dict[str, tuple[float, float, int]]:
        """Return mean, standard deviation and number of scored images of each reward that scored any."""
        result = {}
        for k, name in enumerate(self.scores.names):
            values = self.scores.values[k][self.scores.applicable[k]]
            if len(values):
                result[name] = (values.mean().item(), values.std(correction=0).item(), len(values))
        return result


def score_policy(
    rollout: Rollout,
    adapter: Adapter,
    prompts: list[Prompt],
    scorer: Scorer,
    ranks: Ranks,
    advance: Callable[[int], None],
) -> Evaluation:
    """Draw and score one image per prompt with `adapter`, each rank its part of the prompts.

    Raises:
        RewardError: a reward broke its contract, or failed on too many images.
    """
    count, own = len(prompts), ranks.padded_rank_indices(len(prompts))
    samples = rollout.collect(
        [prompts[i] for i in own],
        own,
        scorer=scorer,
        adapter=adapter,
        purpose="evaluate",
        step=0,
        advance=advance,
    )
    every = samples.scores(ranks)
    scores = Scores(
        every.names, every.values[:, :count], every.applicable[:, :count], every.failed[:, :count]
    )
    scorer.check(scores)
    return Evaluation(prompts, _gather_shown(samples.images, count, ranks, rollout.policy.device), scores)


def _gather_shown(own: Tensor, count: int, ranks: Ranks, device: torch.device) -> Tensor:
    """Gather the images at the `shown` indices from all ranks; `own` are those of this rank."""
    indices = shown(count)
    images = own.new_zeros(len(indices), *own.shape[1:])
    for image, index in zip(images, indices, strict=True):
        rank, offset = divmod(index, len(own))
        if rank == ranks.rank:
            image.copy_(own[offset])
    return ranks.all_reduce(images.to(device)).cpu()


def paired_interval(
    difference: np.ndarray, *, resamples: int = 10_000, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the seeded percentile bootstrap interval of the mean of paired differences [n], float64.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    random = np.random.default_rng(0)
    means = np.concatenate(
        [
            difference[random.integers(0, len(difference), (1000, len(difference)))].mean(axis=1)
            for _ in range(resamples // 1000)
        ]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
