"""Score a policy on held-out prompts with noise that depends on the prompt's place alone."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from marble_cli.data.prompts import Prompt
from marble_cli.policy.base import Adapter
from marble_cli.rewards.scorer import Scorer, Scores
from marble_cli.rollout.collect import Rollout


@dataclass(frozen=True)
class Evaluation:
    """One image a prompt: `images` uint8 [n, 3, H, W] and their scores [K, n]."""

    prompts: list[Prompt]
    images: Tensor
    scores: Scores

    def summary(self) -> dict[str, tuple[float, float, int]]:
        """Mean, standard deviation and number of applicable images, by reward that applied anywhere."""
        result = {}
        for k, name in enumerate(self.scores.names):
            values = self.scores.values[k][self.scores.applicable[k]]
            if len(values):
                result[name] = (values.mean().item(), values.std(correction=0).item(), len(values))
        return result


def score_policy(
    rollout: Rollout, adapter: Adapter, prompts: list[Prompt], scorer: Scorer, advance: Callable[[int], None]
) -> Evaluation:
    """Draw one image for each of `prompts` with `adapter` and score it."""
    samples = rollout.collect(
        prompts,
        range(len(prompts)),
        scorer=scorer,
        adapter=adapter,
        purpose="evaluate",
        step=0,
        advance=advance,
    )
    scores = samples.scores()
    scorer.check(scores)
    return Evaluation(samples.prompts, samples.images, scores)


def paired_interval(
    difference: np.ndarray, *, resamples: int = 10_000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of paired differences [n] float64, seeded.

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
