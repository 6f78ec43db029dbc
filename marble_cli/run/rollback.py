"""Act on reward hacking: stop the run, or go back to its best checkpoint with a larger KL coefficient.

Going back is resuming from the best checkpoint, whose state first learns of it. If the run is killed at any
instant in between, it resumes before the alarm, which then sounds again.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from marble_cli.checkpoint import manifest, step_folders
from marble_cli.config.enums import OnHacking
from marble_cli.config.schema import RunConfig
from marble_cli.config.trainer import RollbackConfig, TrainerConfig
from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import HackingError
from marble_cli.run.state import Progress

log = logging.getLogger("marble.run")

REMEDY = (
    "Look at samples/ and at `marble report`. Then start a run with the reward that fell as a guard "
    "(rewards.<name>.role=guard) or with a larger algorithm.kl_coef, or continue this one with "
    "trainer.on_hacking=warn."
)


@dataclass(eq=False)
class RollBack(Exception):  # noqa: N818 - the run goes on
    """The run has to go back; raised on all ranks at the same point.

    Attributes:
        step: the step of the best checkpoint.
        rollbacks: the number of rollbacks of the run, this one included.
        kl_coef: the KL coefficient from there on, before its schedule.
    """

    step: int
    rollbacks: int
    kl_coef: float


def respond(hacking: str, settings: TrainerConfig, progress: Progress, kl_coef: float) -> None:
    """Do what `trainer.on_hacking` says about an evaluation that shows reward hacking.

    Args:
        hacking: the rewards that rose and fell, in words.
        settings: the configuration group.
        progress: the state after the evaluated step.
        kl_coef: the KL coefficient that the run trains with, before its schedule.

    Raises:
        HackingError: the run has to stop, or cannot go back: no checkpoint is the best yet, or the run has
            gone back `trainer.rollback.times` times.
        RollBack: the run has to go back.
    """
    if settings.on_hacking is OnHacking.warn:
        return
    stopped = f"stopped after step {progress.step}, with a checkpoint: {hacking}."
    if settings.on_hacking is OnHacking.stop:
        raise HackingError(f"{stopped} {REMEDY}")
    if progress.best_step is None:
        raise HackingError(f"{stopped} There is no best checkpoint yet to go back to. {REMEDY}")
    times = settings.rollback.times
    if progress.rollbacks >= times:
        raise HackingError(
            f"{stopped} The run went back {progress.rollbacks} times, and trainer.rollback.times={times} "
            f"allows no more. {REMEDY}"
        )
    larger = raised(kl_coef, settings.rollback)
    log.warning(
        "step %d: going back to the best checkpoint, of step %d (rollback %d of at most %d); "
        "algorithm.kl_coef rises from %g to %g",
        progress.step,
        progress.best_step,
        progress.rollbacks + 1,
        times,
        kl_coef,
        larger,
    )
    raise RollBack(progress.best_step, progress.rollbacks + 1, larger)


def raised(kl_coef: float, settings: RollbackConfig) -> float:
    """Return the KL coefficient after a rollback: `kl_factor` times as large, and at least `kl_least`."""
    return max(settings.kl_least, settings.kl_factor * kl_coef)


def go_back(ranks: Ranks, folder: Path, back: RollBack) -> Path:
    """Note the rollback in the best checkpoint of the run in `folder`; return the checkpoint.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
        StorageError: the note does not fit on the disk; the checkpoint stays as it was.
    """
    checkpoint = step_folders.place(folder, back.step)
    with ranks.raise_together():
        if ranks.is_main:
            manifest.amend(checkpoint, {"rollbacks": back.rollbacks, "kl_coef": back.kl_coef})
    return checkpoint


def in_force(config: RunConfig, progress: Progress) -> RunConfig:
    """Return the configuration with the KL coefficient that the rollbacks so far have led to."""
    if progress.kl_coef is None:
        return config
    return replace(config, algorithm=replace(config.algorithm, kl_coef=progress.kl_coef))
