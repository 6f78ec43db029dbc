"""Score batches of images with every reward, in the background, and keep three outcomes apart.

For every reward and image, either there is a score, or the reward does not apply, or it failed. A failure is
retried; if it persists, these images alone are counted and masked. No score is made up. The run stops if a
plugin breaks its contract, or fails on too large a share of a step's images.
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
from marble_cli.config.conditions import Condition, conditions
from marble_cli.errors import RewardError
from marble_cli.rewards.api import Batch
from marble_cli.rewards.elsewhere.locate import maker
from marble_cli.rewards.elsewhere.meeting import Machine
from marble_cli.rewards.worker import NOT_DRAWN, Outcomes, RewardWorker

Conditions = Mapping[str, tuple[Condition, ...]]

log = logging.getLogger("marble")


@dataclass(frozen=True)
class Scores:
    """Outcomes of n images for K rewards, in the order of `names`.

    `applicable` [K, n] bool is true where there is a score, `failed` [K, n] bool where there should be one.
    Where both are false the reward does not apply. `values` [K, n] float64 has the scores, NaN where
    `applicable` is false.
    """

    names: list[str]
    values: Tensor
    applicable: Tensor
    failed: Tensor

    def only(self, names: Sequence[str]) -> "Scores":
        """Return the outcomes of these rewards, in this order."""
        rows = [self.names.index(name) for name in names]
        return Scores([*names], self.values[rows], self.applicable[rows], self.failed[rows])

    def of_images(self, places: Tensor) -> "Scores":
        """Return the outcomes in the order of images; column i is the image `places[i]`, or padding if -1."""
        order = in_order(places)
        rows = (tensor[:, order] for tensor in (self.values, self.applicable, self.failed))
        return Scores(self.names, *rows)


def in_order(places: Tensor) -> Tensor:
    """Return the columns whose `places` [m] int64 are 0, 1, 2, ...; other columns have -1."""
    return places.argsort(stable=True)[int((places < 0).sum()) :]


@dataclass(frozen=True)
class PendingScores:
    """The scores of a batch that the workers are computing."""

    names: list[str]
    futures: list[Future[Outcomes]]
    conditions: Conditions

    def result(self) -> Scores:
        """Wait for the scores; rewards do not apply where their `only_if` is not met.

        Raises:
            RewardError: a plugin broke its contract.
        """
        return impose(self.conditions, self.unconditional())

    def unconditional(self) -> Scores:
        """Wait for the scores, whether or not the conditions of `only_if` are met; raises as `result`."""
        rows = [future.result() for future in self.futures]
        return Scores(
            self.names,
            torch.cat([row.values for row in rows]),
            torch.cat([row.applicable for row in rows]),
            torch.cat([row.failed for row in rows]),
        )


def impose(conditions: Conditions, scores: Scores) -> Scores:
    """Return the outcomes with rewards masked where their conditions are not met.

    A condition is met by a score alone: not where the other reward does not apply or failed.

    Args:
        conditions: by reward, in an order in which each follows those that it names.
        scores: the outcomes.
    """
    if not conditions:
        return scores
    values, applicable, failed = scores.values.clone(), scores.applicable.clone(), scores.failed.clone()
    for name, parts in conditions.items():
        met = torch.ones_like(applicable[0])
        for part in parts:
            other = scores.names.index(part.name)
            met &= applicable[other] & part.holds(values[other])
        k = scores.names.index(name)
        values[k, ~met] = torch.nan
        applicable[k] &= met
        failed[k] &= met
    return Scores(scores.names, values, applicable, failed)


@dataclass
class Scorer:
    """Scores batches with all workers at once; at most `pending` batches are unfinished at a time."""

    workers: list[RewardWorker]
    pending: int
    warned: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        rewards = {name: row for worker in self.workers for name, row in worker.rewards.items()}
        self.names, self.conditions = list(rewards), conditions(rewards)
        self.slots = threading.BoundedSemaphore(self.pending)

    def only(self, names: Sequence[str]) -> "Scorer":
        """Return a scorer of some of these rewards, which shares their workers.

        All aspects of a reward are among `names`, or none.
        """
        chosen = [worker for worker in self.workers if worker.rewards.keys() <= set(names)]
        return Scorer(chosen, self.pending)

    def worker(self, name: str) -> RewardWorker:
        """Return the worker that scores the reward or aspect `name`."""
        return next(worker for worker in self.workers if name in worker.rewards)

    def submit(
        self,
        images: Tensor,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
        sources: Sequence[str],
        frames: Tensor | None = None,
        references: Sequence[Sequence[Tensor]] | None = None,
        finite: Tensor | None = None,
    ) -> PendingScores:
        """Begin to score a batch; wait first if `pending` batches are unfinished.

        Args:
            images: uint8 [B, 3, H, W] on the CPU.
            prompts: B prompts.
            metadata: of each prompt.
            sources: the prompts' sources.
            frames: uint8 [B, F, 3, H, W] on the CPU, videos whose middle frames the images are.
            references: B sequences of uint8 [3, h, w] on the CPU, all pictures that each image was edited
                from.
            finite: [B] bool, false for images that are none because the model drew values that are not
                finite. Scoring them fails; plugins never see them. None: all are images.
        """
        self.slots.acquire()
        batch = Batch(images, list(prompts), list(metadata), frames=frames, references=references)
        drawn = [True] * len(images) if finite is None else finite.tolist()
        if not all(drawn):
            log.warning("%d of %d images cannot be scored: %s", drawn.count(False), len(drawn), NOT_DRAWN)
        futures = [worker.executor.submit(worker.score, batch, sources, drawn) for worker in self.workers]
        self._release_slot_after(futures)
        return PendingScores(self.names, futures, self.conditions)

    def _release_slot_after(self, futures: "list[Future[Outcomes]]") -> None:
        unfinished, lock = [len(futures)], threading.Lock()

        def count_down(future: "Future[Outcomes]") -> None:
            with lock:
                unfinished[0] -= 1
                if unfinished[0] == 0:
                    self.slots.release()

        for future in futures:
            future.add_done_callback(count_down)

    def check(self, scores: Scores) -> None:
        """Check the outcomes of a whole step, over all ranks, against `max_failed`.

        Raises:
            RewardError: a reward failed on a larger share of its images than `max_failed`.
        """
        for k, name in enumerate(self.names):
            worker = self.worker(name)
            failed, scored = int(scores.failed[k].sum()), int(scores.applicable[k].sum())
            error = worker.errors.get(name, "on another rank")
            if failed > worker.settings.max_failed * (failed + scored):
                raise RewardError(
                    f"reward {name} failed on {failed} of {failed + scored} images, more than "
                    f"{worker.key}.max_failed={worker.settings.max_failed:g} allows. Last error: "
                    f"{error}. {_remedy(worker, error)}, then give the same command again."
                )
            if not failed and not scored and name not in self.warned:
                self.warned.add(name)
                condition = worker.rewards[name].only_if
                log.warning(
                    "reward %s applied to none of the %d images%s; it is left out while that is so",
                    name,
                    scores.values.shape[1],
                    f", by only_if={condition!r}, metadata, source or its own answer" if condition else "",
                )


def _remedy(worker: RewardWorker, error: str) -> str:
    if error == NOT_DRAWN:
        return (
            "Take a lower optimizer.lr, model.precision=bf16 instead of fp16, or an earlier checkpoint "
            "(--resume PATH)"
        )
    if worker.settings.url is not None:
        return f"See to its server at {worker.settings.url}"
    return f"Mend the plugin (marble rewards check {worker.name})"


@contextmanager
def open_scorer(
    rewards: Mapping[str, schema.RewardConfig],
    device: str,
    pending: int = 4,
    machine: Machine | None = None,
    keys: Mapping[str, str] | None = None,
) -> Iterator[Scorer]:
    """Build every reward, and close all of them at the end.

    Args:
        rewards: settings by name.
        device: where rewards compute.
        pending: batches that may be unfinished at a time.
        machine: where the ranks of this machine meet that share the servers of isolated rewards.
        keys: the dotted keys of those that are not `rewards.<name>`.

    Raises:
        ConfigError, RewardError: a reward is unknown or cannot be built.
    """
    workers: list[RewardWorker] = []
    try:
        for name, settings in rewards.items():
            key = (keys or {}).get(name)
            make = maker(name, settings, device, machine, key)
            workers.append(RewardWorker(name, settings, make, key))
        yield Scorer(workers, pending)
    finally:
        for worker in workers:
            worker.close()
