"""Let a coefficient decay over a run, as a function of the step's number alone: resuming needs no state."""

import math

from marble_cli.config.algorithm import AlgorithmConfig
from marble_cli.config.enums import DecaySchedule


def decay(schedule: DecaySchedule, done: float) -> float:
    """Return the share of its first value that a coefficient has left, from 1 at `done=0` to 0 at `done=1`.

    With `cosine` that is (1 + cos(pi x)) / 2 at x = `done`, with `linear` 1 - x, with `constant` always 1.
    """
    match schedule:
        case DecaySchedule.constant:
            return 1.0
        case DecaySchedule.cosine:
            return (1 + math.cos(math.pi * done)) / 2
        case DecaySchedule.linear:
            return 1 - done


def kl_coefficient(algorithm: AlgorithmConfig, step: int, steps: int) -> float:
    """Return the KL coefficient of a step.

    Step 1 has `algorithm.kl_coef`, and step s of N is at x = (s - 1) / N of the decay. Step N + 1 would have
    0, so every step of the run has a KL term if `algorithm.kl_coef` is above 0.

    Args:
        algorithm: the configuration group.
        step: the step, from 1.
        steps: N, the steps of the whole run.
    """
    return algorithm.kl_coef * decay(algorithm.kl_schedule, (step - 1) / steps)
