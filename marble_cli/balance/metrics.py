"""Describe a step's balance for metrics.jsonl, from which `marble explain` reads it."""

import math
from itertools import combinations

import torch
from torch import Tensor

from marble_cli.balance.base import Solution, cosines
from marble_cli.balance.cache import DirectionCache
from marble_cli.balance.conflict import agreement, conflict_share, pairwise_cosines

# Metrics of what a refresh caches; a skipped one caches nothing.
OF_CACHE = ("balance/alpha_cached/", "balance/refresh_interval")
ALONG = 1e-9  # cosine that is the rounding of 0


def describe_gradients(
    names: list[str], gram: Tensor, weights: Tensor, cached: Tensor | None
) -> dict[str, float]:
    """Return norms and cosines of the rewards' gradients.

    Args:
        names: of the K rewards.
        gram: [R, R] float64 of their gradients and, if R = K + 1, of a mixture's.
        weights: [R] of the direction that is applied.
        cached: [K] direction weights that an amortised step would have used; None if there are none.
    """
    count = len(names)
    norms, along = gram.diagonal().sqrt(), cosines(gram, weights)
    pairwise = pairwise_cosines(gram[:count, :count])
    metrics: dict[str, float] = {}
    for k, name in enumerate(names):
        metrics[f"balance/grad_norm/{name}"] = norms[k].item()
        # A direction along the edge of what a reward allows is not against it.
        metrics[f"balance/cosine/{name}"] = 0.0 if along[k].abs() < ALONG else along[k].item()
    for one, other in combinations(range(count), 2):
        metrics[f"balance/pairwise_cosine/{names[one]}/{names[other]}"] = pairwise[one, other].item()
    metrics["balance/conflict_share"] = conflict_share(pairwise)
    if cached is not None and len(gram) == count:
        metrics["balance/staleness_cosine"] = agreement(gram, cached, weights)
        for name, value in zip(names, cosines(gram, cached).tolist(), strict=True):
            metrics[f"balance/cached_cosine/{name}"] = value
    return _finite(metrics)


def describe_solution(names: list[str], solution: Solution, cache: DirectionCache) -> dict[str, float]:
    """Return certificate, shares and weights of a balance, and the shares that are now cached.

    A guard has no share of its own to speak of (`guards.describe_guards`).
    """
    metrics = describe_certificate(solution)
    for k, name in enumerate(names):
        if solution.margins is not None and not solution.margins[k].isnan():
            continue
        if solution.active[k]:
            metrics[f"balance/alpha/{name}"] = solution.alpha[k].item()
            metrics[f"balance/weight/{name}"] = solution.weights[k].item()
        if cache.alpha is not None:
            metrics[f"balance/alpha_cached/{name}"] = cache.alpha[k].item()
    return _finite(metrics)


def describe_certificate(solution: Solution) -> dict[str, float]:
    """Return how well and how fast the QP was solved."""
    return _finite(
        {
            "balance/gap": solution.gap,
            "balance/solve_seconds": solution.seconds,
            "balance/fallbacks": solution.fallbacks,
        }
    )


def describe_cache(names: list[str], cache: DirectionCache) -> dict[str, float]:
    """Return the shares and weights of an amortised step; of a mixture's step only those of the guards."""
    weights = cache.direction_weights()
    if cache.alpha is None or weights is None:
        return {}
    metrics: dict[str, float] = {}
    guards = torch.zeros_like(weights, dtype=torch.bool) if cache.guards is None else cache.guards
    mixture = not cache.alpha[~guards].any()
    for k, name in enumerate(names):
        if mixture and not guards[k]:
            continue
        if not guards[k]:
            metrics[f"balance/alpha/{name}"] = cache.alpha[k].item()
        metrics[f"balance/weight/{name}"] = weights[k].item()
    return metrics


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    """Drop figures that are not finite: a missing figure is a missing key."""
    return {key: value for key, value in metrics.items() if math.isfinite(value)}
