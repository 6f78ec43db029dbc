"""One reward's worker: it asks the plugin for scores of each batch and turns the answers into outcomes.

A reward with aspects is asked once per batch, and its worker has the outcomes of all A of them; any other
reward's worker has A = 1. A failed call is retried; if it still fails, its images count as failed. A call
that hangs is abandoned and the reward is built anew.
"""

import logging
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import tenacity
import torch
from torch import Tensor

from marble_cli.config import schema
from marble_cli.config.aspects import full_name, with_aspect
from marble_cli.errors import ConfigError, RewardError
from marble_cli.rewards.answers import Explained, out_of_range, parse_aspects
from marble_cli.rewards.api import Batch, Declaration
from marble_cli.rewards.applicability import fit_metadata
from marble_cli.rewards.call_thread import CallThread, copy_batch, settle
from marble_cli.rewards.frames import mean_over_frames, single_frames
from marble_cli.rewards.kinds import MetadataError
from marble_cli.rewards.registry import Reward
from marble_cli.wording import count, described

log = logging.getLogger("marble")

NOT_DRAWN = "the model drew values that are not finite (NaN or infinity), and no picture"
STOP = 1.0  # seconds that an idle call thread has to end in
BACK_OFF = tenacity.wait_exponential(multiplier=0.1, max=10.0)  # seconds


def required(settings: schema.RewardConfig, declaration: Declaration) -> list[str]:
    """List the metadata keys that a prompt must have for the reward to apply."""
    return list(dict.fromkeys([*declaration.requires, *settings.requires]))


def concerns(
    settings: schema.RewardConfig, keys: list[str], metadata: Mapping[str, Any], source: str
) -> bool:
    """Tell whether a prompt's source is one of the reward's and its metadata has all required `keys`."""
    of_its_sources = settings.sources is None or source in settings.sources
    return of_its_sources and all(map(metadata.__contains__, keys))


class Outcomes(NamedTuple):
    """The outcomes of A rewards for a batch of B images.

    `applicable` [A, B] bool is true for images with a score, `failed` [A, B] bool for images that should have
    one. If both are false the reward does not apply. `values` [A, B] float64 has the scores, NaN elsewhere.
    """

    values: Tensor
    applicable: Tensor
    failed: Tensor

    @classmethod
    def without_scores(cls, rewards: int, count: int) -> "Outcomes":
        """Return the outcomes of images to which the reward does not apply, to be filled in."""
        return cls(
            torch.full((rewards, count), torch.nan, dtype=torch.float64),
            torch.zeros(rewards, count, dtype=torch.bool),
            torch.zeros(rewards, count, dtype=torch.bool),
        )


class RewardWorker:
    """Scores batches with one reward, one at a time, in the order in which they are submitted.

    `executor` is the worker's own thread; it makes the calls in a second one, a `CallThread`. `key` is
    the reward's dotted key. `rewards` has the settings of the A rewards by name, `aspects` their aspects;
    `errors` describes the last failure of each.
    """

    def __init__(
        self, name: str, settings: schema.RewardConfig, make: Callable[[], Reward], key: str | None = None
    ):
        self.name, self.settings, self.make, self.key = name, settings, make, key or f"rewards.{name}"
        self.reward = make()
        self.aspects = tuple(settings.aspects) or self.reward.declaration.aspects
        self.rewards = {
            full_name(name, aspect): with_aspect(settings, aspect) for aspect in self.aspects or ("",)
        }
        self.errors: dict[str, str] = {}
        self.pending_call: Future[Any] | None = None
        self.closing = threading.Event()
        self.executor = ThreadPoolExecutor(1, thread_name_prefix=f"reward-{name}")
        self.call_thread = CallThread(self.reward)

    @property
    def error(self) -> str | None:
        """The last failure of a reward without aspects."""
        return self.errors.get(self.name)

    def close(self) -> None:
        """End the threads; a call that is still running is abandoned."""
        self.closing.set()
        idle = self.pending_call is None or self.pending_call.done()
        if self.pending_call is not None:
            settle(self.pending_call, error=self._closed_error())
        self.reward.close()
        self.executor.shutdown(wait=True, cancel_futures=True)
        self.call_thread.finish()
        if idle:  # a thread of torch's that ends while the process does can abort the process
            self.call_thread.thread.join(STOP)

    def score(self, batch: Batch, sources: Sequence[str], drawn: Sequence[bool]) -> Outcomes:
        """Score the images of a batch to which the reward applies.

        Args:
            batch: of B images.
            sources: of each prompt.
            drawn: false for images that the model did not draw, and that have failed therefore.

        Raises:
            RewardError: the plugin broke its contract.
        """
        outcomes = Outcomes.without_scores(len(self.rewards), len(batch.images))
        concerned, metadata = self._select(batch, sources, drawn, outcomes.failed)
        rows = list(metadata)
        if not rows:
            return outcomes
        part = batch.rows(rows)._replace(metadata=list(metadata.values()))
        if not self.reward.declaration.takes_conditions:
            part = part._replace(conditions=None)
        try:
            answers = self._ask(part)
        except RewardError:
            raise
        except Exception as error:  # a plugin may raise anything
            self._record_failure(self.name, list(self.rewards), len(rows), describe_failure(error))
            outcomes.failed[concerned] = True
            return outcomes
        for a, (name, (answer, reasons)) in enumerate(zip(self.rewards, answers, strict=True)):
            scores = torch.full((len(batch.images),), torch.nan, dtype=torch.float64)
            scores[rows] = answer
            scores[~concerned[a]] = torch.nan
            failed = out_of_range(scores)
            if failed.any():
                # The first image that failed with a reason says most.
                why = {rows[i]: reason for i, reason in reasons.items() if failed[rows[i]]}
                first = min(why, default=int(failed.int().argmax()))
                text = describe_failure(why[first]) if why else f"returned {scores[first].item()}"
                prompt = repr(batch.prompts[first])
                text = text if prompt in text else f"{text} (prompt {prompt})"
                self._record_failure(name, [name], int(failed.sum()), text)
            outcomes.failed[a] |= failed
            outcomes.applicable[a] = ~scores.isnan() & ~failed
            outcomes.values[a] = torch.where(failed, torch.nan, scores)
        return outcomes

    def _ask(self, batch: Batch) -> list[Explained]:
        """Call the plugin, and again where it fails; a reward of pictures is asked about a video's frames.

        Raises as `attempt`.
        """
        if batch.frames is None or self.reward.declaration.takes_frames:
            return self._retrying()(self._attempt, batch)
        parts = single_frames(batch, self.settings.frames)
        return mean_over_frames([self._retrying()(self._attempt, part) for part in parts])

    def _select(
        self, batch: Batch, sources: Sequence[str], drawn: Sequence[bool], failed: Tensor
    ) -> tuple[Tensor, dict[int, Mapping[str, Any]]]:
        """Find the images to score.

        Returns:
            [A, B] bool, true where a reward concerns an image; and the metadata of the images that any of the
            rewards concerns, by index. `failed` [A, B] is set instead where nothing was drawn, or where
            metadata is of another type than the reward requires.
        """
        declaration = self.reward.declaration
        if declaration.needs_frames and batch.frames is None:
            return torch.zeros_like(failed), {}
        keys = [required(settings, declaration) for settings in self.rewards.values()]
        concerned = torch.zeros_like(failed)
        selected: dict[int, Mapping[str, Any]] = {}
        problems = []
        rows = zip(batch.metadata, sources, batch.picture_counts, strict=True)
        for i, (metadata, source, pictures) in enumerate(rows):
            if not declaration.compares(pictures):
                continue
            of_image = [
                concerns(settings, own, metadata, source)
                for settings, own in zip(self.rewards.values(), keys, strict=True)
            ]
            if not any(of_image):
                continue
            if not drawn[i]:
                failed[:, i] = torch.tensor(of_image)
                self.errors |= dict.fromkeys(self.rewards, NOT_DRAWN)
                continue
            try:
                selected[i] = fit_metadata(declaration.types, metadata)
                concerned[:, i] = torch.tensor(of_image)
            except MetadataError as error:
                failed[:, i] = torch.tensor(of_image)
                problems.append(f"prompt {batch.prompts[i]!r}: {error}")
        if problems:
            text = "; ".join(dict.fromkeys(problems))
            self._record_failure(self.name, list(self.rewards), len(problems), text, last_error=problems[0])
        return concerned, selected

    def _record_failure(
        self, name: str, rewards: list[str], images: int, text: str, *, last_error: str | None = None
    ) -> None:
        self.errors |= dict.fromkeys(rewards, last_error or text)
        log.warning("reward %s failed on %s: %s", name, count(images, "image"), text)

    def _retrying(self) -> tenacity.Retrying:
        return tenacity.Retrying(
            stop=tenacity.stop_after_attempt(1 + self.settings.retries),
            wait=BACK_OFF,
            sleep=tenacity.sleep_using_event(self.closing),
            retry=tenacity.retry_if_not_exception_type(RewardError),
            before_sleep=self._record_retry,
            reraise=True,
        )

    def _record_retry(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        reason = "" if error is None else f": {describe_failure(error)}"
        log.info(
            "reward %s, retry %d of %d%s", self.name, state.attempt_number, self.settings.retries, reason
        )

    def _closed_error(self) -> RewardError:
        return RewardError(f"reward {self.name} was closed before it answered")

    def attempt(self, batch: Batch, timeout: float = 0.0) -> dict[str, Explained]:
        """Call the plugin once, on a copy of the batch and of its metadata, which the plugin may change.

        The timeout begins with this reward's turn.

        Args:
            batch: of B images.
            timeout: seconds that the caller waits; the reward's own count if they are more.

        Returns:
            For each aspect, or under "", the answer as [B] float64 on the CPU, NaN where the reward does not
            apply and infinite where it failed, and the reasons. An aspect that the configuration does not
            choose may be missing.

        Raises:
            RewardError: the plugin broke its contract.
            TimeoutError: it did not answer in time.
            Exception: whatever the plugin raised.
        """
        answer = self._call(batch, timeout)
        answered = [name for name in self.aspects if isinstance(answer, Mapping) and name in answer]
        chosen = [*self.settings.aspects] or answered or self.aspects
        return dict(zip(chosen or [""], self._parse(answer, batch, chosen), strict=True))

    def _attempt(self, batch: Batch) -> list[Explained]:
        return self._parse(self._call(batch), batch, self.aspects)

    def _parse(self, answer: Any, batch: Batch, chosen: Sequence[str]) -> list[Explained]:
        return parse_aspects(self.name, answer, len(batch.images), self.reward.declaration.aspects, chosen)

    def _call(self, batch: Batch, timeout: float = 0.0) -> Any:
        with self.reward.turn():
            return self._call_in_turn(batch, max(timeout, self.settings.timeout) + self.reward.queue)

    def _call_in_turn(self, batch: Batch, limit: float) -> Any:
        future: Future[Any] = Future()
        self.pending_call = future
        if self.closing.is_set():
            raise self._closed_error()
        self.call_thread.call(copy_batch(batch), future)
        try:
            return future.result(limit)
        except TimeoutError:
            if future.done():  # the plugin raised it
                raise
            self._rebuild("did not answer")
            raise TimeoutError(f"no answer within {limit:g} s") from None
        except Exception:
            if not self.reward.alive():
                self._rebuild("is gone")
            raise

    def _rebuild(self, why: str) -> None:
        log.warning("reward %s %s; building it anew", self.name, why)
        self.call_thread.finish()  # if an abandoned call returns after all, its thread ends
        try:
            self.reward = self.make()
        except ConfigError as error:  # no reward is left to call: retrying is useless
            raise RewardError(str(error)) from error
        self.call_thread = CallThread(self.reward)


def describe_failure(error: BaseException) -> str:
    """Describe an exception of a plugin; errors of signals, event loops and sqlite3 may mention threads."""
    text = described(error)
    if re.search(r"\bthreads?\b", text, re.IGNORECASE):
        text += ". (A run builds a reward in its main thread, and calls it in another, always the same.)"
    return text
