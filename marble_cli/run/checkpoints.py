"""Write a run's checkpoints: when they are due, and when the run fails."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from marble_cli.checkpoint import store
from marble_cli.config import schema
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
from marble_cli.policy.base import Policy
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
        last_save_attempt: the last step whose checkpoint was written or failed to be written.
    """

    folder: Path
    settings: schema.TrainerConfig
    policy: Policy
    optimizer: torch.optim.Optimizer
    layout: Layout
    progress: Progress
    mid_update: bool = False
    last_save_attempt: int | None = None

    @property
    def up_to_date(self) -> bool:
        """Tell whether saving the last finished step has been tried already."""
        return self.last_save_attempt == self.progress.step

    def save(self, best: bool) -> None:
        """Write a checkpoint of the last finished step; if that fails, all ranks raise.

        Raises:
            TrainingError: the weights differ among ranks; no checkpoint is written.
        """
        try:
            check_alike(
                self.policy.parameters("trained"), self.layout, self.progress.step, self.last_save_attempt
            )
        except TrainingError:
            self.last_save_attempt = self.progress.step  # so that none is written at the end either
            raise
        packed = self.pack()
        with nullcontext() if self.written_by_all else self.layout.ranks.raise_together():
            self.write(packed, best)

    @contextmanager
    def salvage(self) -> Iterator[None]:
        """If the run fails inside the block, checkpoint the last finished step and re-raise the error."""
        self.last_save_attempt = self.progress.step or None
        try:
            yield
        except BaseException as error:
            if not self.mid_update and not self.up_to_date:
                self._keep(error)
            raise

    def _keep(self, error: BaseException) -> None:
        """Write a checkpoint after `error`, if the remaining ranks can."""
        ranks = self.layout.ranks
        together = ranks.world == 1 or ranks.leaving or isinstance(error, ON_ALL_RANKS)
        if self.layout.sharded and not together:
            log.error("step %d is not kept: other processes hold shards of its weights", self.progress.step)
            return
        forget(error)
        try:
            with bounded("while the last step was checkpointed", "Free the device"):
                self.write(self.pack(), False)
        except (StorageError, DeviceMemoryError, PeerError) as second:  # log only: `error` is raised
            log.error("checkpointing step %d on the way out failed too: %s", self.progress.step, second)
        if together:
            # A launcher may kill the main rank, which is still writing, when other ranks have ended.
            ranks.barrier()

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

    def write(self, packed: Packed | None, best: bool) -> None:
        """Write a checkpoint on the main rank, or on all ranks together."""
        self.last_save_attempt = self.progress.step
        settings, ranks = self.settings, self.layout.ranks
        if packed is not None and (ranks.is_main or self.written_by_all):
            store.save(
                self.folder,
                *packed,
                keep_last=settings.keep_last,
                keep_every=settings.keep_every,
                best=best,
                ranks=ranks if self.written_by_all else Ranks.alone(),
            )
