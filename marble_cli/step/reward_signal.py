"""Turn a step's scores into its signal: advantages and optimalities, per reward or of one mixed reward."""

from dataclasses import dataclass

import torch
from torch import Tensor

from marble_cli.balance.constant import Scalarisation, ScalarisedReward
from marble_cli.config.algorithm import AlgorithmConfig
from marble_cli.objective.advantages import (
    advantage_sum,
    advantages,
    effective_samples,
    optimality,
    weighted_sum,
)
from marble_cli.objective.coefficients import Coefficients, reward_coefficients
from marble_cli.objective.group_signal import group_signal


@dataclass(frozen=True)
class Signal:
    """Scores of K rewards for the step's n images, and what follows from them.

    `applicable` alone says which reward scored which image. Values outside it are never read, and may be NaN.

    Attributes:
        rewards: [K, n] float64 scores.
        applicable: [K, n] bool.
        groups: [n] int64, the prompt of each image.
        advantage: [K, n] float64.
        optimality: [K, n] float64 in [0, 1].
    """

    rewards: Tensor
    applicable: Tensor
    groups: Tensor
    advantage: Tensor
    optimality: Tensor


def read_signal(rewards: Tensor, applicable: Tensor, groups: Tensor, algorithm: AlgorithmConfig) -> Signal:
    """Compute advantages and optimalities.

    Args:
        rewards: [K, n] scores; the value is ignored where not applicable.
        applicable: [K, n] bool.
        groups: [n] int64, the prompt of each image.
        algorithm: has the deviation and the clip of the advantages.
    """
    advantage = advantages(rewards, applicable, groups, std=algorithm.advantage.std)
    return Signal(rewards, applicable, groups, advantage, optimality(advantage, algorithm.advantage.clip))


def scalarised_coefficients(
    signal: Signal, reward: ScalarisedReward, algorithm: AlgorithmConfig
) -> Coefficients:
    """Return the coefficients [n] of the one loss of a balance that mixes rewards before the loss.

    `weighted_sum` mixes raw rewards and then normalises; `advantage_sum` normalises each and then mixes.
    """
    weights = torch.tensor(reward.weights, dtype=torch.float64)
    trained = slice(None) if reward.guards is None else reward.guards.trained
    applicable = signal.applicable[trained]
    match reward.kind:
        case Scalarisation.weighted_sum:
            mixed, scored = weighted_sum(
                signal.rewards[trained], applicable, weights, signal.groups, reduce=reward.reduce
            )
            advantage = advantages(mixed, scored, signal.groups, std=algorithm.advantage.std)
        case Scalarisation.advantage_sum:
            advantage, scored = advantage_sum(signal.advantage[trained], applicable, weights)
    r = optimality(advantage, algorithm.advantage.clip)
    return reward_coefficients(r, scored).combined(torch.ones(1, dtype=torch.float64))


def describe_signal(names: list[str], signal: Signal) -> dict[str, float]:
    """Return the metrics of a step's trained rewards; a reward that applied nowhere has no mean."""
    groups = group_signal(signal.rewards, signal.applicable, signal.groups)
    metrics: dict[str, float] = {"signal/dead_groups": groups.dead.double().mean().item()}
    for k, name in enumerate(names):
        mask = signal.applicable[k]
        metrics[f"reward/{name}/applicable"] = int(mask.sum())
        if mask.any():
            values = signal.rewards[k][mask]
            metrics[f"reward/{name}/mean"] = values.mean().item()
            metrics[f"reward/{name}/std"] = values.std(correction=0).item()
            advantage = signal.advantage[k][mask]
            metrics[f"advantage/{name}/std"] = advantage.std(correction=0).item()
            metrics[f"advantage/{name}/effective_samples"] = effective_samples(advantage)
        if (flat := groups.flat_share(k)) is not None:
            metrics[f"reward/{name}/flat_groups"] = flat
    return metrics
