"""Score batches of images with every reward, in the background, and keep three outcomes apart.

Per reward and image there is a score, or the reward does not apply, or it failed. A failure is retried, then
counted and masked for these images only; nobody makes up a score. A plugin that breaks its contract, or fails on
too large a share of a step's images, stops the run.
"""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from marble_cli.config import schema
from marble_cli.errors import RewardError
from marble_cli.rewards.api import Batch
from marble_cli.rewards.elsewhere.locate import maker
from marble_cli.rewards.worker import RewardWorker

log = logging.getLogger("marble")


@dataclass(frozen=True)
class Scores:
    """Scores of n images by K rewards, in the order of `names`.

    `values` [K, n] float64 is NaN where there is no score; `applicable` [K, n] bool tells where there is one, `failed`
    [K, n] bool where there should have been. Where neither is true the reward does not apply.
    """

    names: list[str]
    values: Tensor
    applicable: Tensor
    failed: Tensor


@dataclass(frozen=True)
class PendingScores:
    """The scores of a batch, while they are being made."""

    names: list[str]
    futures: list[Future[tuple[Tensor, Tensor]]]

    def result(self) -> Scores:
        """Wait for them.

        Raises:
            RewardError: a plugin broke its contract.
        """
        parts = [future.result() for future in self.futures]
        values, failed = (torch.stack(rows) for rows in zip(*parts, strict=True))
        return Scores(self.names, values, ~torch.isnan(values), failed)


@dataclass
class Scorer:
    """Scores batches with all lanes at once; at most `pending` batches wait at a time."""

    lanes: list[RewardWorker]
    pending: int
    warned: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.names = [lane.name for lane in self.lanes]
        self.places = threading.BoundedSemaphore(self.pending)

    def only(self, names: Sequence[str]) -> "Scorer":
        """A scorer of some of these rewards; it shares their threads."""
        return Scorer([lane for lane in self.lanes if lane.name in names], self.pending)

    def submit(
        self,
        images: Tensor,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
        sources: Sequence[str],
    ) -> PendingScores:
        """Begin to score a batch; waits only while `pending` batches are unfinished.

        Args:
            images: uint8 [B, 3, H, W] on the CPU.
            prompts: B prompts.
            metadata: of each prompt.
            sources: the prompts' sources.
        """
        self.places.acquire()
        batch = Batch(images, list(prompts), list(metadata))
        futures = [lane.executor.submit(lane.score, batch, sources) for lane in self.lanes]
        self._release_after(futures)
        return PendingScores(self.names, futures)

    def _release_after(self, futures: "list[Future[tuple[Tensor, Tensor]]]") -> None:
        left, lock = [len(futures)], threading.Lock()

        def finished(future: "Future[tuple[Tensor, Tensor]]") -> None:
            with lock:
                left[0] -= 1
                if left[0] == 0:
                    self.places.release()

        for future in futures:
            future.add_done_callback(finished)

    def check(self, scores: Scores) -> None:
        """Judge the outcomes of a whole step, over all ranks.

        Raises:
            RewardError: a reward failed on a larger share of its images than `max_failed`.
        """
        for k, lane in enumerate(self.lanes):
            failed, scored = int(scores.failed[k].sum()), int(scores.applicable[k].sum())
            if failed > lane.settings.max_failed * (failed + scored):
                raise RewardError(
                    f"reward {lane.name} failed on {failed} of {failed + scored} images, more than "
                    f"rewards.{lane.name}.max_failed={lane.settings.max_failed:g} allows. Last error: "
                    f"{lane.error or 'on another rank'}. {_remedy(lane)}; a run then goes on with --resume auto."
                )
            if not failed and not scored and lane.name not in self.warned:
                self.warned.add(lane.name)
                log.warning(
                    "reward %s applied to none of the %d images of this step; it is left out until it does",
                    lane.name, scores.values.shape[1],
                )  # fmt: skip


def _remedy(lane: RewardWorker) -> str:
    if lane.settings.url is not None:
        return f"See to its server at {lane.settings.url}"
    return f"Mend the plugin (marble rewards check {lane.name})"


@contextmanager
def open_scorer(
    rewards: Mapping[str, schema.RewardConfig], device: str, pending: int = 4
) -> Iterator[Scorer]:
    """Build every reward and keep it open.

    Args:
        rewards: settings by name.
        device: where rewards compute.
        pending: batches that may wait to be scored.

    Raises:
        ConfigError, RewardError: a reward is unknown or cannot be built.
    """
    lanes: list[RewardWorker] = []
    try:
        for name, settings in rewards.items():
            lanes.append(RewardWorker(name, settings, maker(name, settings, device)))
        yield Scorer(lanes, pending)
    finally:
        for lane in lanes:
            lane.close()
