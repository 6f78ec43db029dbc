"""Paired statistics over images of prompts: intervals, a test, its correction, and how often one side wins.

Images of one prompt are not independent, so prompts are what is resampled.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import permutation_test

LEVEL = 0.05  # of a verdict, over all rewards together


def paired_interval(
    difference: np.ndarray,
    prompts: np.ndarray | None = None,
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return the seeded percentile bootstrap interval of the mean of paired differences [n], float64.

    Args:
        difference: one number per image.
        prompts: int [n], the prompt of each image; None if each image has its own.
        resamples: of the bootstrap over prompts.
        confidence: of the interval.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    return _bootstrap([_by_prompt(difference, prompts)], resamples, confidence)


def group_mean_interval(
    values: np.ndarray, prompts: np.ndarray, groups: np.ndarray, *, resamples: int = 10_000
) -> tuple[float, float]:
    """Return the seeded 95 % bootstrap interval of the mean of the groups' means.

    Prompts are drawn anew within each group, so that every group keeps its number of them.

    Args:
        values: float64 [n], one number per image.
        prompts: int [n], the prompt of each image.
        groups: [n], the group of each image's prompt.
        resamples: of the bootstrap.
    """
    names = dict.fromkeys(groups.tolist())
    strata = [_by_prompt(values[groups == name], prompts[groups == name]) for name in names]
    return _bootstrap(strata, resamples, 0.95)


def _bootstrap(
    strata: Sequence[tuple[np.ndarray, np.ndarray]], resamples: int, confidence: float
) -> tuple[float, float]:
    """Return the percentile interval of the mean over strata; each has its prompts' sums and numbers."""
    random = np.random.default_rng(0)
    means = []
    for _ in range(resamples // 1000):
        drawn = [(random.integers(0, len(sums), (1000, len(sums))), sums, counts) for sums, counts in strata]
        by_stratum = [sums[rows].sum(axis=1) / counts[rows].sum(axis=1) for rows, sums, counts in drawn]
        means.append(np.mean(by_stratum, axis=0))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def sign_flip_p_value(difference: np.ndarray, prompts: np.ndarray | None = None) -> float:
    """Return the two-sided p-value of the hypothesis that differences [n] are symmetric around 0.

    Every prompt's sum is given a random sign; with few prompts, every combination of signs is tried.

    Source: Fisher, The Design of Experiments (1935), section 21.
    """
    sums, _ = _by_prompt(difference, prompts)
    if len(sums) < 2 or not sums.any():
        return 1.0
    result = permutation_test(
        (sums,),
        lambda values, axis: values.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        batch=1000,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that are corrected for their number, in the given order.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics
    6 (1979).
    """
    order = np.argsort(p_values)
    steps = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in corrected]


def win_rate(difference: np.ndarray) -> float:
    """Return the share of differences [n] above 0; one that is 0 counts half."""
    return float((np.sign(difference) / 2 + 0.5).mean())


def _by_prompt(values: np.ndarray, prompts: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of each prompt's values, and their number."""
    if prompts is None:
        return values, np.ones(len(values))
    _, rows = np.unique(prompts, return_inverse=True)
    return np.bincount(rows, values), np.bincount(rows).astype(float)
