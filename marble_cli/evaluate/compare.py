"""Compare two policies on the same prompts and noise: reward by reward, source by source, and jointly."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from marble_cli.evaluate.joint import JointChange, joint_change
from marble_cli.evaluate.score import Evaluation
from marble_cli.evaluate.statistics import LEVEL, holm, paired_interval, sign_flip_p_value, win_rate


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Mean over `n` values; `reference`, `difference` and its 95 % interval only against another policy."""

    n: int
    mean: float | None = None
    reference: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON holds them, without those that are not set."""
        own: dict[str, Any] = {"n": self.n, "mean": self.mean}
        if self.difference is None:
            return own
        return own | {
            "reference": self.reference,
            "difference": self.difference,
            "interval": [self.low, self.high],
        }


@dataclass(frozen=True, kw_only=True)
class RewardResult(Figures):
    """Figures of one reward over the `n` images that it scored; on `failed` further images it failed.

    Attributes:
        sources: the figures of each prompt source with a score.
        win_rate: share of images on which the target scores higher; equal scores count half.
        p_value: of no difference, corrected for the number of rewards.
        verdict: rose, fell or undecided, at 5 % over all rewards together.
    """

    name: str
    failed: int
    sources: dict[str, Figures] = field(default_factory=dict)
    win_rate: float | None = None
    p_value: float | None = None
    verdict: str | None = None

    def to_json(self) -> dict[str, Any]:
        own = super().to_json() | {"failed": self.failed}
        if self.verdict is not None:
            own |= {"win_rate": self.win_rate, "p_value": self.p_value, "verdict": self.verdict}
        return own | {"sources": {name: figures.to_json() for name, figures in self.sources.items()}}


@dataclass(frozen=True)
class Comparison:
    """The target against one other policy.

    `joint` is None if no trained reward scored an image of both, `diversity` with one image per prompt.
    """

    against: str
    rewards: list[RewardResult]
    joint: JointChange | None = None
    diversity: Figures | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON holds it."""
        return {
            "against": self.against,
            "rewards": {result.name: result.to_json() for result in self.rewards},
            "joint": None if self.joint is None else self.joint.to_json(),
            "diversity": None if self.diversity is None else self.diversity.to_json(),
        }


def compare(one: Evaluation, other: Evaluation | None) -> list[RewardResult]:
    """Compare two policies reward by reward, over the images that the reward scored for both.

    Without `other`, the results are those of `one` alone.
    """
    sources, prompts = np.array(one.sources), one.prompt_indices
    results, differences = [], list[tuple[np.ndarray, np.ndarray]]()
    for k, name in enumerate(one.scores.names):
        both, failed = one.scores.applicable[k].numpy(), int(one.scores.failed[k].sum())
        values, reference = one.scores.values[k].numpy(), None
        if other is not None:
            both = both & other.scores.applicable[k].numpy()
            failed, reference = failed + int(other.scores.failed[k].sum()), other.scores.values[k].numpy()
            differences.append(((values - reference)[both], prompts[both]))
        by_source = {
            source: summarise(values, reference, prompts, both & (sources == source))
            for source in dict.fromkeys(one.sources)
            if (both & (sources == source)).any()
        }
        whole = summarise(values, reference, prompts, both)
        results.append(RewardResult(name=name, failed=failed, sources=by_source, **vars(whole)))
    return results if other is None else _decide(results, differences)


def summarise(
    values: np.ndarray, reference: np.ndarray | None, prompts: np.ndarray, chosen: np.ndarray
) -> Figures:
    """Summarise the `chosen` of some values, and their differences from `reference` if given.

    Args:
        values: [n] float64.
        reference: [n] float64, of the other policy.
        prompts: int [n], the prompt of each value.
        chosen: bool [n].
    """
    own = values[chosen]
    if not len(own):
        return Figures(n=0)
    if reference is None:
        return Figures(n=len(own), mean=float(own.mean()))
    before = reference[chosen]
    difference = np.asarray(own - before)
    low, high = paired_interval(difference, prompts[chosen])
    means = {"mean": own, "reference": before, "difference": difference}
    return Figures(n=len(own), low=low, high=high, **{key: float(part.mean()) for key, part in means.items()})


def _decide(
    results: list[RewardResult], differences: Sequence[tuple[np.ndarray, np.ndarray]]
) -> list[RewardResult]:
    """Add win rates, corrected p-values and verdicts to the rewards that scored images of both policies."""
    scored = [place for place, result in enumerate(results) if result.n]
    corrected = holm([sign_flip_p_value(*differences[place]) for place in scored])
    decided = list(results)
    for place, p_value in zip(scored, corrected, strict=True):
        difference, _ = differences[place]
        moved = "rose" if difference.mean() > 0 else "fell"
        decided[place] = replace(
            results[place],
            win_rate=win_rate(difference),
            p_value=p_value,
            verdict=moved if p_value <= LEVEL else "undecided",
        )
    return decided


def compare_jointly(one: Evaluation, other: Evaluation, rewards: Sequence[str]) -> JointChange | None:
    """Compare two policies image by image, over all of `rewards`; None if none scored an image for both."""
    rows = [one.scores.names.index(name) for name in rewards]
    both = (one.scores.applicable[rows] & other.scores.applicable[rows]).numpy()
    now, before = one.scores.values[rows].numpy(), other.scores.values[rows].numpy()
    return joint_change(now, before, both, one.prompt_indices)


def compare_diversity(one: Evaluation, other: Evaluation | None) -> Figures | None:
    """Return the mean diversity within a prompt, over prompts with finite images; None with one image."""
    if one.diversity is None:
        return None
    own = one.diversity.numpy()
    reference = None if other is None or other.diversity is None else other.diversity.numpy()
    finite = np.isfinite(own if reference is None else own + reference)
    return summarise(own, reference, np.arange(len(own)), finite)
