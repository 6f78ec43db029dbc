"""Judge an evaluation inside a run: gains over the start, and signs of reward hacking."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from marble_cli.evaluate.joint import joint_change
from marble_cli.evaluate.score import Evaluation
from marble_cli.evaluate.statistics import paired_interval, sign_flip_p_value

ROUNDING = 1e-6  # of a score in float32, relative


@dataclass(frozen=True)
class Verdict:
    """Metrics of an evaluation, its composite gain, and its sign of reward hacking in words, if any.

    The composite is NaN, and no metric, if no trained reward and no guard can be compared.
    """

    metrics: dict[str, Any]
    composite: float
    hacking: str | None


def base_scores(evaluation: Evaluation) -> dict[str, list[float | None]]:
    """Return each reward's scores as plain lists for JSON, None for images that it does not apply to."""
    return {
        name: [value if applies else None for value, applies in zip(row, mask, strict=True)]
        for name, row, mask in zip(
            evaluation.scores.names,
            evaluation.scores.values.tolist(),
            evaluation.scores.applicable.tolist(),
            strict=True,
        )
    }


def judge(
    evaluation: Evaluation,
    start: dict[str, list[float | None]],
    trained: list[str],
    watched: list[str],
    guards: Collection[str] = (),
) -> Verdict:
    """Compare an evaluation with the start of the run, image by image.

    Args:
        evaluation: evaluation on the run's held-out prompts.
        start: `base_scores` of the evaluation before the first step.
        trained: names of the rewards that are trained on. The composite is the mean of their gains, each
            in standard deviations of the scores at the start.
        watched: names of the rewards that are not trained on. If the mean of one falls and that of a trained
            one rises, each over several prompts and with a 95 % interval that excludes 0, reward hacking is
            likely.
        guards: names of the guards. The loss of one counts in the composite like that of a trained reward, a
            gain does not. One that falls is a sign of reward hacking, and joint improvement counts it.
    """
    metrics = _describe_scores(evaluation)
    scores = dict(zip(evaluation.scores.names, evaluation.scores.values, strict=True))
    gains, losses, rose, fell = [], [], [], []
    for name, before in start.items():
        pairs, both = _paired(scores.get(name), before)
        if not len(pairs):
            continue
        difference = pairs[:, 0] - pairs[:, 1]
        prompts = evaluation.prompt_indices[both]
        low, high = paired_interval(difference, prompts, resamples=1000)
        decisive = len(np.unique(prompts)) > 1  # the interval of one has no width
        metrics |= {
            f"reward/{name}/change": float(difference.mean()),
            f"reward/{name}/change_low": low,
            f"reward/{name}/change_high": high,
            f"reward/{name}/change_p": sign_flip_p_value(difference, prompts),
            f"reward/{name}/gain": (gain := _gain(pairs)),
        }
        if name in trained:
            gains.append(gain)
            rose += [f"{name} ({difference.mean():+.3g})"] if low > 0 and decisive else []
        elif high < 0 and decisive and (name in watched or name in guards):
            fell.append(f"{name} ({difference.mean():+.3g})")
        if name in guards:
            losses.append(min(0.0, gain))
    hacking = (
        f"{', '.join(fell)} fell since the start while {', '.join(rose)} rose, each beyond its 95 % "
        "interval: a sign of reward hacking"
    )
    composite = math.nan
    if gains or losses:
        composite = metrics["eval/composite"] = sum([*gains, *losses]) / max(1, len(gains))
    if evaluation.diversity is not None:
        metrics["eval/diversity"] = evaluation.diversity.nanmean().item()
    metrics |= _joint_metrics(scores, start, [*trained, *guards])
    return Verdict(metrics, composite, hacking if fell and rose else None)


def _describe_scores(evaluation: Evaluation) -> dict[str, Any]:
    """Return each reward's numbers of scored and of failed images, and the scores' mean and deviation."""
    metrics: dict[str, Any] = {}
    scores = evaluation.scores
    for name, applicable, failed in zip(scores.names, scores.applicable, scores.failed, strict=True):
        metrics[f"reward/{name}/applicable"] = int(applicable.sum())
        metrics[f"reward/{name}/failed"] = int(failed.sum())
    for name, (mean, std, _) in evaluation.summary().items():
        metrics |= {f"reward/{name}/mean": mean, f"reward/{name}/std": std}
    return metrics


def _gain(pairs: np.ndarray) -> float:
    """Return the mean change of pairs (now, start) [m, 2] in standard deviations of the start.

    If all scores of the start are equal up to rounding in float32, the unit is the deviation of all scores of
    both; 0 if nothing moved.
    """
    now, start = pairs.T
    unit = (start if np.ptp(start) > ROUNDING * np.abs(start).max() else pairs).std()
    return float((now - start).mean() / unit) if np.ptp(pairs) else 0.0


def _joint_metrics(
    scores: dict[str, Tensor], start: dict[str, list[float | None]], trained: list[str]
) -> dict[str, float]:
    """Return the shares of images that improved and declined in all of `trained`; none without pairs."""
    names = [name for name in trained if name in scores and len(scores[name]) == len(start.get(name, ()))]
    if not names:
        return {}
    now = np.stack([scores[name].numpy() for name in names])
    before = np.array([[np.nan if value is None else value for value in start[name]] for name in names])
    change = joint_change(now, before, np.isfinite(now) & np.isfinite(before), resamples=1000)
    if change is None:
        return {}
    return {"eval/joint_improvement": change.improvement, "eval/joint_decline": change.decline}


def _paired(now: Tensor | None, before: list[float | None]) -> tuple[np.ndarray, np.ndarray]:
    """Pair the scores now and at the start.

    Returns:
        The pairs [m, 2] float64 of the images that have both scores, and the places of these images [m].
    """
    if now is None or len(now) != len(before):
        return np.empty((0, 2)), np.empty(0, dtype=int)
    rows = np.stack([now.numpy(), np.array([np.nan if v is None else v for v in before])], axis=1)
    both = np.flatnonzero(np.isfinite(rows).all(axis=1))
    return rows[both], both
