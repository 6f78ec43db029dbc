"""One reward's own thread, and what it makes of the plugin's answers.

A failed call is made again, then its images are masked; a call that hangs is left behind and the reward built anew.
"""

import copy
import logging
import queue
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import tenacity
import torch
from torch import Tensor

from marble_cli.config import schema
from marble_cli.errors import ConfigError, RewardError
from marble_cli.rewards.answers import checked, failure
from marble_cli.rewards.api import Batch, Declaration
from marble_cli.rewards.applicability import fitted
from marble_cli.rewards.guard import Guard, Stage
from marble_cli.rewards.kinds import MetadataError
from marble_cli.rewards.registry import Reward

log = logging.getLogger("marble")

STOP = 1.0  # seconds that an idle thread has to end in
UNCHANGING = {str, int, float, bool, type(None)}
BACK_OFF = tenacity.wait_exponential(multiplier=0.1, max=10.0)  # seconds


def required(settings: schema.RewardConfig, declaration: Declaration) -> list[str]:
    """The metadata keys without which a reward is not asked about a prompt."""
    return list(dict.fromkeys([*declaration.requires, *settings.requires]))


def concerns(
    settings: schema.RewardConfig, keys: list[str], metadata: Mapping[str, Any], source: str
) -> bool:
    """Whether a reward that requires `keys` is asked about a prompt with this metadata from this source."""
    of_its_sources = settings.sources is None or source in settings.sources
    return of_its_sources and all(map(metadata.__contains__, keys))


class Caller:
    """A daemon thread in which a reward is called, so that a call that hangs can be left behind."""

    def __init__(self, reward: Reward) -> None:
        self.calls: queue.SimpleQueue[tuple[Batch, Future[Any]] | None] = queue.SimpleQueue()
        arguments = (reward.call, reward.guard, self.calls)
        name = f"call-{reward.name}"
        self.thread = threading.Thread(target=_serve, args=arguments, name=name, daemon=True)
        self.thread.start()

    def call(self, batch: Batch, future: Future[Any]) -> None:
        """Have `future` answered in its turn."""
        self.calls.put((batch, future))

    def leave(self) -> None:
        """End the thread once the calls that wait are made."""
        self.calls.put(None)


class RewardWorker:
    """One reward's own thread: batches are scored one at a time, in the order in which they came."""

    def __init__(self, name: str, settings: schema.RewardConfig, make: Callable[[], Reward]):
        self.name, self.settings, self.make = name, settings, make
        self.reward = make()
        self.error: str | None = None
        self.awaited: Future[Any] | None = None
        self.closing = threading.Event()
        self.executor = ThreadPoolExecutor(1, thread_name_prefix=f"reward-{name}")
        self.caller = Caller(self.reward)

    def close(self) -> None:
        """End the threads; a call that is still running is left behind, not waited for."""
        self.closing.set()
        idle = self.awaited is None or self.awaited.done()
        if self.awaited is not None:
            _settle(self.awaited, error=self._closed())
        self.reward.close()
        self.executor.shutdown(wait=True, cancel_futures=True)
        self.caller.leave()
        if idle:
            self.caller.thread.join(STOP)  # a thread of torch's that ends while the process does can abort it

    def score(self, batch: Batch, sources: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Scores [B] float64, NaN where there is none, and [B] bool: failed.

        Raises:
            RewardError: the plugin broke its contract.
        """
        values = torch.full((len(batch.images),), torch.nan, dtype=torch.float64)
        failed = torch.zeros(len(batch.images), dtype=torch.bool)
        rows, metadata = self._asked(batch, sources, failed)
        if not rows:
            return values, failed
        asked = torch.tensor(rows, dtype=torch.int64)
        images = batch.images if len(rows) == len(batch.images) else batch.images[asked]
        part = Batch(images, [batch.prompts[i] for i in rows], metadata)
        try:
            answer, reason = self._retrying()(self.attempt, part)
        except RewardError:
            raise
        except Exception as error:  # whatever a plugin may raise
            self.error = _said(error)
            log.warning("reward %s failed on %d images: %s", self.name, len(asked), self.error)
            failed[asked] = True
            return values, failed
        infinite = torch.isinf(answer)
        if infinite.any():
            said = _said(reason) if reason else f"returned {answer[infinite][0].item()}"
            prompt = repr(part.prompts[int(infinite.int().argmax())])
            self.error = said if prompt in said else f"{said} (prompt {prompt})"
            log.warning("reward %s failed on %d images: %s", self.name, int(infinite.sum()), self.error)
        values[asked] = torch.where(infinite, torch.nan, answer)
        failed[asked] = infinite
        return values, failed

    def _asked(
        self, batch: Batch, sources: Sequence[str], failed: Tensor
    ) -> tuple[list[int], list[Mapping[str, Any]]]:
        """Return the places in the batch that the reward is asked about, and their metadata.

        Where the metadata is not of the type that the reward requires, `failed` [B] is set instead.
        """
        keys = required(self.settings, self.reward.declaration)
        rows, known, problems = [], [], []
        for i, (metadata, source) in enumerate(zip(batch.metadata, sources, strict=True)):
            if concerns(self.settings, keys, metadata, source):
                try:
                    known.append(fitted(self.reward.declaration.types, metadata))
                    rows.append(i)
                except MetadataError as error:
                    failed[i] = True
                    problems.append(f"prompt {batch.prompts[i]!r}: {error}")
        if problems:
            self.error = problems[0]
            log.warning(
                "reward %s failed on %d images: %s",
                self.name,
                len(problems),
                "; ".join(dict.fromkeys(problems)),
            )
        return rows, known

    def _retrying(self) -> tenacity.Retrying:
        return tenacity.Retrying(
            stop=tenacity.stop_after_attempt(1 + self.settings.retries),
            wait=BACK_OFF,
            sleep=tenacity.sleep_using_event(self.closing),
            retry=tenacity.retry_if_not_exception_type(RewardError),
            reraise=True,
        )

    def _closed(self) -> RewardError:
        return RewardError(f"reward {self.name} was closed before it answered")

    def attempt(self, batch: Batch) -> tuple[Tensor, BaseException | None]:
        """One call of the plugin: its answer, checked, [B] float64 on the CPU, and the first failure it reports.

        The plugin is given a copy, down to what is nested in the metadata: it may do with it as it likes.

        Raises:
            RewardError: the plugin broke its contract.
            Exception: whatever it raised, or a TimeoutError.
        """
        future: Future[Any] = Future()
        self.awaited = future
        if self.closing.is_set():
            raise self._closed()
        self.caller.call(own_copy(batch), future)
        try:
            answer = future.result(self.settings.timeout)
        except TimeoutError:
            if future.done():  # the plugin's own TimeoutError
                raise
            self._build_anew("did not answer")
            raise TimeoutError(f"no answer within {self.settings.timeout:g} s") from None
        except Exception:
            if not self.reward.alive():
                self._build_anew("is gone")
            raise
        return checked(self.name, answer, len(batch.images)), failure(answer)

    def _build_anew(self, why: str) -> None:
        log.warning("reward %s %s; building it anew", self.name, why)
        self.caller.leave()  # should a call return after all, its thread ends
        try:
            self.reward = self.make()
        except ConfigError as error:  # there is nothing left to call
            raise RewardError(str(error)) from error
        self.caller = Caller(self.reward)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}{of_threads(error)}"


def of_threads(error: BaseException) -> str:
    """Return what to know of threads where an error is about them, as those of signals, event loops and sqlite3 are."""
    if not re.search(r"\bthreads?\b", str(error), re.IGNORECASE):
        return ""
    return ". (A run builds a reward in its main thread, and calls it in another, always the same.)"


def called_as_in_a_run(reward: Reward) -> Reward:
    """Return the reward with calls that are made in a thread of its own, as a lane makes them, but for the timeout."""
    caller = Caller(reward)

    def call(batch: Batch) -> Any:
        future: Future[Any] = Future()
        caller.call(batch, future)
        return future.result()

    def close() -> None:
        caller.leave()
        reward.close()

    return replace(reward, call=call, close=close)


def _serve(
    call: Callable[[Batch], Any], guard: Guard, calls: "queue.SimpleQueue[tuple[Batch, Future[Any]] | None]"
) -> None:
    while (item := calls.get()) is not None:
        batch, future = item
        try:
            with torch.inference_mode():
                answer = guard.run(Stage.CALL, partial(call, batch))
        except Exception as error:  # handed to the lane, which decides
            _settle(future, error=error)
        else:
            _settle(future, answer)


def _settle(future: Future[Any], answer: Any = None, error: Exception | None = None) -> None:
    """Answer `future` unless it has been answered: the lane may be closed while its plugin still computes."""
    with suppress(InvalidStateError):
        if error is None:
            future.set_result(answer)
        else:
            future.set_exception(error)


def own_copy(batch: Batch) -> Batch:
    """Return a copy of a batch that shares nothing with it."""
    return Batch(batch.images.clone(), list(batch.prompts), [_copied(dict(row)) for row in batch.metadata])


def _copied(value: Any) -> Any:
    """Return a copy of what metadata holds; for what JSON can say it is many times faster than `copy.deepcopy`."""
    kind = type(value)
    if kind is dict:
        return {key: _copied(part) for key, part in value.items()}
    if kind is list:
        return [_copied(part) for part in value]
    return value if kind in UNCHANGING else copy.deepcopy(value)
