"""Joint improvement and joint decline: what happened to each image in all of its rewards at once.

Means hide what a balance is for: a mean may rise while most images lose in one reward or another.

Source: arXiv 2605.13155, which counts an image as improved only if no reward of it fell.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from marble_cli.evaluate.statistics import paired_interval

Interval = tuple[float, float]
ROUNDING = 1e-4  # of the larger of two scores: float32 images drawn in other batches differed by up to 1.2e-5


@dataclass(frozen=True)
class JointChange:
    """Shares of images, each with its 95 % bootstrap interval.

    Attributes:
        images: images that some reward scored under both policies.
        improvement: share that is at least as good in every applicable reward and better in one.
        decline: share that is worse in every applicable reward.
    """

    images: int
    improvement: float
    improvement_interval: Interval
    decline: float
    decline_interval: Interval

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON holds them."""
        return {
            "images": self.images,
            "improvement": self.improvement,
            "improvement_interval": list(self.improvement_interval),
            "decline": self.decline,
            "decline_interval": list(self.decline_interval),
        }

    def describe(self) -> str:
        """Return both shares in a sentence."""
        (up, up_interval), (down, down_interval) = (
            (f"{share:.1%}", f"{low:.1%} … {high:.1%}")
            for share, (low, high) in (
                (self.improvement, self.improvement_interval),
                (self.decline, self.decline_interval),
            )
        )
        return (
            f"Of {self.images} images {up} ({up_interval}) improved jointly: one reward rose and none fell. "
            f"In {down} ({down_interval}) every one fell."
        )


def changed_jointly(difference: np.ndarray, applicable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tell, as two bool [n], which images improved and which declined in all of their rewards.

    Args:
        difference: [K, n] of scores.
        applicable: bool [K, n]; differences outside are never read.
    """
    better, worse = (difference > 0) & applicable, (difference < 0) & applicable
    improved = better.any(axis=0) & ~worse.any(axis=0)
    declined = worse.any(axis=0) & (worse | ~applicable).all(axis=0)
    return np.asarray(improved), np.asarray(declined)


def joint_change(
    now: np.ndarray,
    before: np.ndarray,
    applicable: np.ndarray,
    prompts: np.ndarray | None = None,
    *,
    resamples: int = 10_000,
) -> JointChange | None:
    """Compare two policies image by image, over all rewards; None if no reward scored any image under both.

    Scores that differ by `ROUNDING` or less count as equal.

    Args:
        now: scores [K, n] of the policy in question.
        before: scores [K, n] of the reference, on the same prompts and noise.
        applicable: bool [K, n]; true where both scores exist. Others are never read.
        prompts: int [n], the prompt of each image; None if each image has its own.
        resamples: of the bootstrap over prompts.
    """
    judged: np.ndarray = np.asarray(applicable.any(axis=0))
    if not judged.any():
        return None
    now, before = np.where(applicable, now, 0), np.where(applicable, before, 0)
    difference = now - before
    difference[np.abs(difference) <= ROUNDING * np.maximum(np.abs(now), np.abs(before))] = 0
    improved, declined = (image[judged].astype(float) for image in changed_jointly(difference, applicable))
    of = None if prompts is None else prompts[judged]
    return JointChange(
        len(improved),
        float(improved.mean()),
        paired_interval(improved, of, resamples=resamples),
        float(declined.mean()),
        paired_interval(declined, of, resamples=resamples),
    )
