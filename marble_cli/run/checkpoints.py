"""Write a run's checkpoints: where they are due, and on the way out of a failure."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from marble_cli.checkpoint import store
from marble_cli.config import schema
from marble_cli.distributed.layout import Layout
from marble_cli.errors import BalanceError, DeviceMemoryError, RewardError, StorageError, TrainingError
from marble_cli.plan.memory import bounded, forget
from marble_cli.policy.base import Policy
from marble_cli.run.state import Packed, Progress, pack
from marble_cli.step.alike import check_alike

log = logging.getLogger("marble.run")

ALIKE = (RewardError, TrainingError, BalanceError)  # raised on all ranks, which see the same


@dataclass
class Checkpoints:
    """Checkpoints of a run's last finished step.

    Attributes:
        mid_update: true between the optimizer step and the bookkeeping; what is in memory then is of no step.
        last_save_attempt: the last step of which a checkpoint was written, or could not be.
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
        """Tell whether the last finished step has been saved, or could not be."""
        return self.last_save_attempt == self.progress.step

    def save(self, best: bool) -> None:
        """Write a checkpoint of the last finished step; where that fails, all ranks leave.

        Raises:
            TrainingError: the ranks' weights are not alike; no checkpoint is written.
        """
        try:
            check_alike(
                self.policy.parameters("trained"), self.layout, self.progress.step, self.last_save_attempt
            )
        except TrainingError:
            self.last_save_attempt = self.progress.step  # nor is one written at the end
            raise
        packed = self.pack()
        with self.layout.ranks.raise_together():
            self.write(packed, best)

    @contextmanager
    def salvage(self) -> Iterator[None]:
        """Keep the last finished step if the run fails inside, and re-raise what stopped it."""
        self.last_save_attempt = self.progress.step or None
        try:
            yield
        except BaseException as error:
            if not self.mid_update and not self.up_to_date:
                self._keep(error)
            raise

    def _keep(self, error: BaseException) -> None:
        """Write a checkpoint on the way out of `error`, as far as the ranks can."""
        ranks = self.layout.ranks
        together = ranks.world == 1 or ranks.leaving or isinstance(error, ALIKE)
        if self.layout.sharded and not together:
            log.error("step %d is not kept: other processes hold parts of it", self.progress.step)
            return
        forget(error)
        try:
            with bounded("as the step was to be kept", "Free the device"):
                self.write(self.pack(), False)
        except (StorageError, DeviceMemoryError) as second:  # what stopped the run is the news
            log.error("checkpointing step %d on the way out failed too: %s", self.progress.step, second)
        if together:
            ranks.barrier()  # a launcher may end the main rank, which still writes, when others have gone

    def pack(self) -> Packed | None:
        """Return what a checkpoint holds, for the main rank to write; of shards, the others send theirs."""
        if self.layout.ranks.is_main or self.layout.sharded:
            return pack(self.policy, self.optimizer, self.progress)
        return None

    def write(self, packed: Packed | None, best: bool) -> None:
        """Write a checkpoint on the main rank."""
        self.last_save_attempt = self.progress.step
        if self.layout.ranks.is_main and packed is not None:
            settings = self.settings
            store.save(
                self.folder, *packed, keep_last=settings.keep_last, keep_every=settings.keep_every, best=best
            )
