"""Count the images, training times and refreshes of a run, and its processes."""

from collections.abc import Sequence
from dataclasses import dataclass

from marble_cli.config.enums import BalanceMode, RefreshWhen
from marble_cli.config.schema import LauncherConfig, RunConfig


@dataclass(frozen=True)
class Geometry:
    """Images and training times of one step, over all processes, and the most refresh steps of the run."""

    images: int
    times: int
    refresh_steps: int
    trained: int  # images in training, if no group is dead

    @property
    def samples(self) -> int:
        return self.trained * self.times


def times_per_image(solver_times: int, fraction: float, per_image: int | None) -> tuple[int, int]:
    """Return how many of the solver's times are trained on, and how many of these each image gets.

    Args:
        solver_times: times of the solver, `rollout.steps`.
        fraction: `trainer.timestep_fraction` of them is trained on, at least one.
        per_image: `trainer.times_per_image`; None gives each image all of them.
    """
    usable = max(1, int(round(solver_times * fraction, 9)))  # 0.7 * 90 is 62.99999999999999
    return usable, usable if per_image is None else min(per_image, usable)


def is_refresh(step: int, every: int, warmup: int) -> bool:
    """Tell whether `step` (1-based) refreshes: the first `warmup` steps do, and steps 1, 1 + every, ..."""
    return step <= warmup or (step - 1) % every == 0


def refreshes(steps: int, every: int, warmup: int) -> int:
    """Return how many of the first `steps` steps refresh, as `is_refresh` tells."""
    warmup = min(warmup, steps)
    return warmup + -(-steps // every) - -(-warmup // every)


def processes(launcher: LauncherConfig) -> int:
    """Return the number of processes of the whole job."""
    return launcher.nodes * launcher.nproc


def per_process(count: int, processes: int, together: int = 1) -> int:
    """Return how many of `count` images each process draws; those of some may be padding.

    Args:
        count: images, over all processes.
        processes: their number.
        together: neighbouring images that stay on one process; a divisor of `count`.
    """
    return -(-count // (together * processes)) * together


def geometry(config: RunConfig) -> Geometry:
    """Return the batch geometry of a run."""
    trainer = config.trainer
    _, times = times_per_image(config.rollout.steps, trainer.timestep_fraction, trainer.times_per_image)
    balance = config.balance
    regular = balance.mode is BalanceMode.amortized and balance.refresh_when is RefreshWhen.scheduled
    every = balance.refresh_every if regular else 1
    refresh = refreshes(trainer.steps, every, balance.warmup)
    images = config.rollout.groups * config.rollout.group_size
    return Geometry(images, times, refresh, trained_images(config, images))


def trained_images(config: RunConfig, images: int) -> int:
    """Return how many of so many images `trainer.select` trains on."""
    return max(1, round(config.trainer.select.fraction * images))


def images_per_process(
    config: RunConfig, together: int = 1, groups: Sequence[int] = (), world: int | None = None
) -> list[int]:
    """Return how many images of each size a process draws in a step; those of some may be padding.

    Args:
        config: the run's configuration.
        together: neighbouring images that stay on one process.
        groups: a step's groups of each size; none if all have one.
        world: the number of processes; None: that of the run.
    """
    size, world = config.rollout.group_size, world or processes(config.launcher)
    return [per_process(count * size, world, together) for count in groups or (config.rollout.groups,)]


def micro_batches(
    config: RunConfig, together: int = 1, groups: Sequence[int] = (), world: int | None = None
) -> int:
    """Return the number of micro-batches of a step on each process; arguments as `images_per_process`."""
    drawn = images_per_process(config, together, groups, world)
    trained = (trained_images(config, images) for images in drawn)
    return geometry(config).times * sum(-(-images // config.trainer.micro_batch_size) for images in trained)
