"""Exponential moving averages of adapters: the one that is evaluated, and the behaviour policy's schedule."""

import torch
from torch import Tensor

from marble_cli.config.schema import BehaviourConfig, BehaviourSchedule, EmaConfig


def ema_decay(ema: EmaConfig, step: int) -> float:
    """Return the decay of the moving average after `step` updates (1-based).

    It rises, so that early steps are not dominated by the start: min(decay, s / (s + warmup)) with
    s = step + offset. Warm-up 9 and offset 1 are min(decay, (1 + step) / (10 + step)), as published with
    arXiv 2509.16117.
    """
    reached = step + ema.offset
    return min(ema.decay, reached / (reached + ema.warmup)) if ema.warmup else ema.decay


def behaviour_eta(behaviour: BehaviourConfig, step: int) -> float:
    """Share of the old behaviour policy kept after `step` updates (arXiv 2509.16117).

    `ramp`: min(rate * max(step - delay, 0), maximum); `flat`: maximum; `hold`: it never moves. The published
    decay types are ramps: 0 has maximum 0, 1 rate 0.001 and maximum 0.95, 2 delay 75, rate 0.0075 and maximum 0.999.
    """
    match behaviour.schedule:
        case BehaviourSchedule.ramp:
            return min(behaviour.rate * max(step - behaviour.delay, 0), behaviour.maximum)
        case BehaviourSchedule.flat:
            return behaviour.maximum
        case BehaviourSchedule.hold:
            return 1.0


@torch.no_grad()
def blend(target: dict[str, Tensor], source: dict[str, Tensor], keep: float) -> None:
    """Target <- keep * target + (1 - keep) * source, in place, matched by name."""
    for name, tensor in target.items():
        tensor.lerp_(source[name], 1.0 - keep)
