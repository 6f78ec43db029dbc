"""Compute the learning rate of a step from the step's number alone, so that a resumed run needs no state."""

from marble_cli.config.schema import OptimizerConfig
from marble_cli.objective.decay import decay


def learning_rate(optimizer: OptimizerConfig, step: int, steps: int) -> float:
    """Return the learning rate of a step.

    In a warm-up of w steps, step s has lr * s / (w + 1). Of the N - w steps after it, the i-th (from 0) is at
    x = i / (N - w) of the decay (`objective.decay`). Step N + 1 would have 0, so every step of the run moves
    the weights.

    Args:
        optimizer: the configuration group.
        step: the step, from 1.
        steps: N, the steps of the whole run.
    """
    lr, warmup = optimizer.lr, optimizer.warmup
    if step <= warmup:
        return lr * step / (warmup + 1)
    return lr * decay(optimizer.schedule, (step - warmup - 1) / (steps - warmup))
