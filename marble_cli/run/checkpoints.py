"""Write a run's checkpoints: when they are due, and when the run fails.

Those of a LoRA are written while training waits. Whole transformers are copied to the CPU's memory, and a
thread writes the copy beside training, one at a time. The thread's collectives have a process group of their
own, so no rank mixes them up with those of training.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from marble_cli.checkpoint import manifest, step_folders, store
from marble_cli.checkpoint.background import Background
from marble_cli.config.trainer import TrainerConfig
from marble_cli.distributed.layout import Layout
from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import (
    BalanceError,
    DeviceMemoryError,
    PeerError,
    RewardError,
    StorageError,
    TrainingError,
)
from marble_cli.plan.memory import copy_fits
from marble_cli.policy.base import Policy
from marble_cli.run.rollback import RollBack
from marble_cli.run.shortage import bounded, forget
from marble_cli.run.state import Packed, Progress, hold, pack
from marble_cli.step.alike import check_alike

log = logging.getLogger("marble.run")

# Raised on all ranks at the same point.
ON_ALL_RANKS = (RewardError, TrainingError, BalanceError)


@dataclass
class Checkpoints:
    """Writes checkpoints of a run's last finished step.

    Attributes:
        folder: the run's folder.
        settings: how many checkpoints to keep.
        policy: the policy to save.
        optimizer: the optimizer to save.
        layout: how ranks hold parameters.
        progress: the state after the last finished step.
        mid_update: true between the optimizer step and the bookkeeping; never write a checkpoint then.
        last_save_attempt: the last step whose checkpoint is being written, was or failed to be.
        background: the thread that writes.
        writers: the ranks that write together.
    """

    folder: Path
    settings: TrainerConfig
    policy: Policy
    optimizer: torch.optim.Optimizer
    layout: Layout
    progress: Progress
    mid_update: bool = False
    last_save_attempt: int | None = None
    background: Background = field(default_factory=Background)

    def __post_init__(self) -> None:
        self.writers = self.layout.ranks.apart() if self.written_by_all else Ranks.alone()

    @property
    def up_to_date(self) -> bool:
        """Tell whether saving the last finished step has been tried already."""
        return self.last_save_attempt == self.progress.step

    def save(self, best: bool) -> None:
        """Write a checkpoint of the last finished step, or begin to if whole transformers are trained.

        Raises:
            TrainingError: the weights differ among ranks; no checkpoint is written.
            StorageError: this checkpoint, or the one that was begun before, could not be written; on all
                ranks.
        """
        try:
            check_alike(
                self.policy.parameters("trained"), self.layout, self.progress.step, self.last_save_attempt
            )
        except TrainingError:
            self.last_save_attempt = self.progress.step  # so that none is written at the end either
            raise
        self.wait()
        self.begin(best)
        if not self.is_full:
            self.wait()

    def are_begun(self) -> bool:
        """Tell whether the run's folder holds the checkpoint of the last finished step; on all ranks."""
        ranks, own = self.layout.ranks, step_folders.place(self.folder, self.progress.step)
        return ranks.any(ranks.is_main and own.is_dir())

    def adopt(self) -> None:
        """Write the checkpoint of another run, from which this run begins, as a checkpoint of this one.

        Resumed before its first checkpoint is due, the run would otherwise start over from the base model.
        """
        if not self.are_begun():
            self.save(False)
            self.wait()

    def note(self, best: bool) -> None:
        """Note an evaluation in the checkpoint that the run resumed from, whose tensors are still the same.

        A new run has none.
        """
        if not self.are_begun():
            return
        ranks, step = self.layout.ranks, self.progress.step
        with ranks.raise_together():
            if ranks.is_main:
                own = step_folders.place(self.folder, step)
                manifest.amend(own, hold(self.policy, self.optimizer, self.progress)[0].info)
                if best:
                    step_folders.point_best(self.folder, step)

    def check(self) -> None:
        """Raise, on all ranks, if a checkpoint could not be written; do not wait for one."""
        if self.is_full and self.layout.ranks.any(self.background.failed):
            self.wait()

    def wait(self) -> None:
        """Wait until the checkpoint that was begun is written; if that fails, all ranks raise.

        Raises:
            StorageError: it could not be written, e.g. because the disk is full.
        """
        if self.written_by_all:
            self.background.wait()  # the writers have agreed already
        else:
            with self.layout.ranks.raise_together():
                self.background.wait()

    @contextmanager
    def salvage(self) -> Iterator[None]:
        """If the run fails inside the block, checkpoint the last finished step and re-raise the error."""
        self.last_save_attempt = self.progress.step or None
        try:
            yield
        except RollBack:  # what was learned since the best checkpoint is given up
            self.wait()
            raise
        except BaseException as error:
            ranks = self.layout.ranks
            together = ranks.world == 1 or self._leaving or isinstance(error, ON_ALL_RANKS)
            try:
                self.background.wait()
            except Exception as second:  # whatever it is, log only: `error` is raised
                self._log_failure(self.last_save_attempt, second)
            if self.policy.intact and not self.mid_update and not self.up_to_date:
                self._keep(error, together)
            if together:
                # A launcher may kill the main rank, which is still writing, when other ranks have ended.
                ranks.barrier()
            raise

    @property
    def _leaving(self) -> bool:
        return self.layout.ranks.leaving or self.writers.leaving

    def _keep(self, error: BaseException, together: bool) -> None:
        """Write a checkpoint after `error`, which all ranks raise `together`, if the remaining ranks can."""
        if self.layout.sharded and not together:
            log.error("step %d is not kept: other processes hold shards of its weights", self.progress.step)
            return
        forget(error)
        try:
            with bounded("while the last step was checkpointed", "Free the device"):
                self.begin(False)
                self.background.wait()
        except (StorageError, DeviceMemoryError, PeerError) as second:  # log only: `error` is raised
            self._log_failure(self.progress.step, second)

    @property
    def is_full(self) -> bool:
        """Tell whether whole transformers are trained, of which a copy may not fit into memory."""
        return self.policy.layers() is None

    @property
    def written_by_all(self) -> bool:
        """Tell whether all ranks write a checkpoint together."""
        return self.layout.sharded and self.is_full

    def pack(self) -> Packed | None:
        """Return the content of a checkpoint on the ranks that write it; with shards, all ranks take part."""
        if not (self.layout.ranks.is_main or self.layout.sharded):
            return None
        return (hold if self.is_full else pack)(self.policy, self.optimizer, self.progress)

    def _log_failure(self, step: int | None, error: Exception) -> None:
        log.error("checkpointing step %s on the way out failed too: %s", step, error)

    def begin(self, best: bool) -> None:
        """Write a checkpoint on the main rank, or on all ranks together; in the background if it is full."""
        packed = self.pack()
        self.last_save_attempt = self.progress.step
        if packed is None or not (self.layout.ranks.is_main or self.written_by_all):
            return
        unwritten = store.arrange(*packed, ranks=self.writers)
        if beside := self.is_full and self._fits(unwritten.size):
            unwritten = unwritten.in_memory()
        settings = self.settings
        keep = partial(store.write, keep_last=settings.keep_last, keep_every=settings.keep_every, best=best)
        self.background.run(partial(keep, self.folder, unwritten, ranks=self.writers), now=not beside)

    def _fits(self, size: int) -> bool:
        """Tell whether the CPU's memory holds a copy of a checkpoint; the same on all ranks that write."""
        lacking = self.writers.any(not copy_fits(size))
        if lacking:
            log.info("training waits for the checkpoint: the CPU's memory may not hold a copy of it")
        return not lacking
