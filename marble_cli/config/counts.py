"""Count the images, training times and refreshes of a run, and its processes."""

from dataclasses import dataclass

from marble_cli.config.schema import BalanceMode, RunConfig


@dataclass(frozen=True)
class Geometry:
    """Images and training times of one step, over all processes, and refresh steps of the whole run."""

    images: int
    times: int
    refresh_steps: int

    @property
    def samples(self) -> int:
        return self.images * self.times


def processes(config: RunConfig) -> int:
    """Return the number of processes of the whole job."""
    return config.launcher.nodes * config.launcher.nproc


def geometry(config: RunConfig) -> Geometry:
    """Return the batch geometry of a run."""
    usable = max(1, int(config.rollout.steps * config.trainer.timestep_fraction))
    per_image = config.trainer.times_per_image
    times = usable if per_image is None else min(per_image, usable)
    balance, steps = config.balance, config.trainer.steps
    every = balance.refresh_every if balance.mode is BalanceMode.amortized else 1
    refresh = sum(step <= balance.warmup or (step - 1) % every == 0 for step in range(1, steps + 1))
    return Geometry(config.rollout.groups * config.rollout.group_size, times, refresh)
