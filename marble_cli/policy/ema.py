"""Exponential moving averages of adapters: the one that is evaluated, and the behaviour policy's schedule."""

import torch
from torch import Tensor

from marble_cli.config.schema import Behaviour, BehaviourSchedule, Ema


def ema_decay(ema: Ema, step: int) -> float:
    """Decay after `step` updates (1-based): ramped so that early steps are not dominated by the start."""
    return min(ema.decay, step / (step + ema.warmup)) if ema.warmup else ema.decay


def behaviour_eta(behaviour: Behaviour, step: int) -> float:
    """Share of the old behaviour policy kept after `step` updates (arXiv 2509.16117).

    `ramp`: min(rate * step, maximum); `flat`: maximum; `hold`: the behaviour policy never moves.
    """
    match behaviour.schedule:
        case BehaviourSchedule.ramp:
            return min(behaviour.rate * step, behaviour.maximum)
        case BehaviourSchedule.flat:
            return behaviour.maximum
        case BehaviourSchedule.hold:
            return 1.0


@torch.no_grad()
def blend(target: dict[str, Tensor], source: dict[str, Tensor], keep: float) -> None:
    """target <- keep * target + (1 - keep) * source, in place, matched by name."""
    for name, tensor in target.items():
        tensor.lerp_(source[name], 1.0 - keep)
