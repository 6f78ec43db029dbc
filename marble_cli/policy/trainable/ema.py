"""Moving averages of the trained weights: the one that is evaluated, and the behaviour policy."""

from collections.abc import Mapping

import torch
from torch import Tensor

from marble_cli.config.algorithm import BehaviourConfig
from marble_cli.config.enums import BehaviourSchedule
from marble_cli.config.trainer import EmaConfig


def ema_decay(ema: EmaConfig, step: int) -> float:
    """Return the decay of the moving average after `step` updates (1-based).

    With a warm-up, it rises to `decay`, so that the initial weights do not dominate early steps: min(decay, s
    / (s + warmup)) with s = step + offset. Warm-up 9 and offset 1 are min(decay, (1 + step) / (10 + step)),
    as published with arXiv 2509.16117.
    """
    s = step + ema.offset
    return min(ema.decay, s / (s + ema.warmup)) if ema.warmup else ema.decay


def behaviour_eta(behaviour: BehaviourConfig, step: int) -> float:
    """Return the share of the behaviour policy that is kept after `step` updates.

    `ramp` is min(rate * max(step - delay, 0), maximum), `flat` is maximum, and `hold` is 1: the policy never
    changes. The published decay types are ramps: type 0 has maximum 0; type 1 rate 0.001 and maximum 0.95;
    type 2 delay 75, rate 0.0075 and maximum 0.999.

    Source: arXiv 2509.16117.
    """
    match behaviour.schedule:
        case BehaviourSchedule.ramp:
            return min(behaviour.rate * max(step - behaviour.delay, 0), behaviour.maximum)
        case BehaviourSchedule.flat:
            return behaviour.maximum
        case BehaviourSchedule.hold:
            return 1.0


@torch.no_grad()
def blend(target: Mapping[str, Tensor], source: Mapping[str, Tensor], keep: float) -> None:
    """Update in place, by name: target <- keep * target + (1 - keep) * source."""
    for name, tensor in target.items():
        tensor.lerp_(source[name], 1.0 - keep)
