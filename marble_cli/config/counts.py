"""Counts of a step: images, training times, refreshes, and what falls to each process."""

from dataclasses import dataclass

from marble_cli.config.schema import BalanceMode, RunConfig


@dataclass(frozen=True)
class Geometry:
    """Counts of one step over all processes."""

    images: int
    times: int
    refresh_steps: int

    @property
    def samples(self) -> int:
        return self.images * self.times


def processes(config: RunConfig) -> int:
    """Processes of the whole job."""
    return config.launcher.nodes * config.launcher.nproc


def geometry(config: RunConfig) -> Geometry:
    """Batch geometry of `config`."""
    usable = max(1, int(config.rollout.steps * config.trainer.timestep_fraction))
    wanted = config.trainer.times_per_image
    times = usable if wanted is None else min(wanted, usable)
    balance, steps = config.balance, config.trainer.steps
    every = balance.refresh_every if balance.mode is BalanceMode.amortized else 1
    refresh = sum(step <= balance.warmup or (step - 1) % every == 0 for step in range(1, steps + 1))
    return Geometry(config.rollout.groups * config.rollout.group_size, times, refresh)
