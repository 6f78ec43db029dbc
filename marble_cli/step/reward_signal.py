"""What the rewards say of a step: scores turned into advantages and optimalities, and any mixture of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from marble_cli.balance.constant import Scalarisation, ScalarisedReward
from marble_cli.config.schema import AlgorithmConfig
from marble_cli.objective.advantages import (
    advantage_sum,
    advantages,
    effective_samples,
    optimality,
    weighted_sum,
)
from marble_cli.objective.coefficients import Coefficients, reward_coefficients


@dataclass(frozen=True)
class Signal:
    """Of K rewards over the step's n images: `rewards`, `advantage`, `optimality` [K, n] float64, `applicable` bool."""

    rewards: Tensor
    applicable: Tensor
    groups: Tensor
    advantage: Tensor
    optimality: Tensor


def read_signal(rewards: Tensor, applicable: Tensor, groups: Tensor, algorithm: AlgorithmConfig) -> Signal:
    """Advantages and optimalities of `rewards` [K, n] where `applicable` [K, n], by prompt group `groups` [n]."""
    advantage = advantages(rewards, applicable, groups, std=algorithm.advantage.std.value)
    return Signal(rewards, applicable, groups, advantage, optimality(advantage, algorithm.advantage.clip))


def scalarised_coefficients(
    signal: Signal, reward: ScalarisedReward, algorithm: AlgorithmConfig
) -> Coefficients:
    """Return the coefficients [n] of a balance that mixes rewards before there is a gradient.

    `weighted_sum` mixes raw rewards and then normalises; `advantage_sum` normalises each and then mixes.

    Raises:
        ConfigError: the mixture is of another kind.
    """
    weights = torch.tensor(reward.weights, dtype=torch.float64)
    if reward.kind is Scalarisation.weighted_sum:
        rewards, applicable, groups = signal.rewards, signal.applicable, signal.groups
        mixed, scored = weighted_sum(rewards, applicable, weights, groups, reduce=reward.reduce.value)
        advantage = advantages(mixed, scored, groups, std=algorithm.advantage.std.value)
    else:
        advantage, scored = advantage_sum(signal.advantage, signal.applicable, weights)
    r = optimality(advantage, algorithm.advantage.clip)
    return reward_coefficients(r, scored).combined(torch.ones(1, dtype=torch.float64))


def describe(names: list[str], signal: Signal) -> dict[str, float]:
    """Metrics of the signal; a reward that applied nowhere has no mean."""
    metrics: dict[str, float] = {}
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
    return metrics
