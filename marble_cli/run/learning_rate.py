"""Compute the learning rate of a step from the step's number alone, so that a resumed run needs no state."""

import math

from marble_cli.config.enums import LearningRateSchedule
from marble_cli.config.schema import OptimizerConfig


def learning_rate(optimizer: OptimizerConfig, step: int, steps: int) -> float:
    """Return the learning rate of a step.

    In a warm-up of w steps, step s has lr * s / (w + 1). Of the N - w steps after it, the i-th (from 0) is at
    x = i / (N - w) of the decay: lr * (1 + cos(pi x)) / 2 with `cosine`, lr * (1 - x) with `linear`. Step
    N + 1 would have 0, so every step of the run moves the weights.

    Args:
        optimizer: the configuration group.
        step: the step, from 1.
        steps: N, the steps of the whole run.
    """
    lr, warmup = optimizer.lr, optimizer.warmup
    if step <= warmup:
        return lr * step / (warmup + 1)
    match optimizer.schedule:
        case LearningRateSchedule.constant:
            return lr
        case LearningRateSchedule.cosine:
            return lr * (1 + math.cos(math.pi * _decayed(step, warmup, steps))) / 2
        case LearningRateSchedule.linear:
            return lr * (1 - _decayed(step, warmup, steps))


def _decayed(step: int, warmup: int, steps: int) -> float:
    """Return the share of the decay that is done before `step`."""
    return (step - warmup - 1) / (steps - warmup)
