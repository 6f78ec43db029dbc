"""One reward's own thread, and what it makes of the plugin's answers.

A failed call is made again, then its images are masked; a call that hangs is left behind and the reward built anew.
"""

import logging
import math
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import tenacity
import torch
from torch import Tensor

from marble_cli.config import schema
from marble_cli.errors import ConfigError, RewardError
from marble_cli.rewards.api import Batch, Declaration
from marble_cli.rewards.registry import Reward

log = logging.getLogger("marble")

STOP = 1.0  # seconds that an idle thread has to end in
BACK_OFF = tenacity.wait_exponential(multiplier=0.1, max=10.0)  # seconds


def required(settings: schema.Reward, declaration: Declaration) -> list[str]:
    """The metadata keys without which a reward is not asked about a prompt."""
    return list(dict.fromkeys([*declaration.requires, *settings.requires]))


def concerns(settings: schema.Reward, keys: list[str], metadata: Mapping[str, Any], source: str) -> bool:
    """Whether a reward that requires `keys` is asked about a prompt with this metadata from this source."""
    of_its_sources = settings.sources is None or source in settings.sources
    return of_its_sources and all(map(metadata.__contains__, keys))


class Lane:
    """One reward's own thread: batches are scored one at a time, in the order in which they came."""

    def __init__(self, name: str, settings: schema.Reward, make: Callable[[], Reward]):
        self.name, self.settings, self.make = name, settings, make
        self.reward = make()
        self.error: str | None = None
        self.awaited: Future[Any] | None = None
        self.closing = threading.Event()
        self.executor = ThreadPoolExecutor(1, thread_name_prefix=f"reward-{name}")
        self._start_caller()

    def _start_caller(self) -> None:
        """A daemon thread makes the calls, so that one that hangs can be left behind."""
        self.calls: queue.SimpleQueue[tuple[Batch, Future[Any]] | None] = queue.SimpleQueue()
        arguments = (self.reward.call, self.calls)
        self.caller = threading.Thread(target=_serve, args=arguments, name=f"call-{self.name}", daemon=True)
        self.caller.start()

    def close(self) -> None:
        """End the threads; a call that is still running is left behind, not waited for."""
        self.closing.set()
        idle = self.awaited is None or self.awaited.done()
        if self.awaited is not None:
            _settle(self.awaited, error=self._closed())
        self.reward.close()
        self.executor.shutdown(wait=True, cancel_futures=True)
        self.calls.put(None)
        if idle:
            self.caller.join(STOP)  # a thread of torch's that ends while the process does can abort it

    def score(self, batch: Batch, sources: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Scores [B] float64, NaN where there is none, and [B] bool: failed.

        Raises:
            RewardError: the plugin broke its contract.
        """
        values = torch.full((len(batch.images),), torch.nan, dtype=torch.float64)
        failed = torch.zeros(len(batch.images), dtype=torch.bool)
        keys = required(self.settings, self.reward.declaration)
        asked = torch.tensor(
            [
                i
                for i, (metadata, source) in enumerate(zip(batch.metadata, sources, strict=True))
                if concerns(self.settings, keys, metadata, source)
            ],
            dtype=torch.int64,
        )
        if not len(asked):
            return values, failed
        part = Batch(
            batch.images[asked], [batch.prompts[i] for i in asked], [batch.metadata[i] for i in asked]
        )
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
            self.error = _said(reason) if reason else f"returned {answer[infinite][0].item()}"
            log.warning("reward %s failed on %d images: %s", self.name, int(infinite.sum()), self.error)
        values[asked] = torch.where(infinite, torch.nan, answer)
        failed[asked] = infinite
        return values, failed

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

    def attempt(self, batch: Batch) -> tuple[Tensor, Exception | None]:
        """One call of the plugin: its answer, checked, [B] float64 on the CPU, and the first failure it reports.

        Raises:
            RewardError: the plugin broke its contract.
            Exception: whatever it raised, or a TimeoutError.
        """
        future: Future[Any] = Future()
        self.awaited = future
        if self.closing.is_set():
            raise self._closed()
        self.calls.put((batch, future))
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
        self.calls.put(None)  # should a call return after all, its thread ends
        try:
            self.reward = self.make()
        except ConfigError as error:  # there is nothing left to call
            raise RewardError(str(error)) from error
        self._start_caller()


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _serve(
    call: Callable[[Batch], Any], calls: "queue.SimpleQueue[tuple[Batch, Future[Any]] | None]"
) -> None:
    while (item := calls.get()) is not None:
        batch, future = item
        try:
            with torch.inference_mode():
                answer = call(batch)
        except Exception as error:  # handed to the lane, which decides
            _settle(future, error=error)
        except BaseException as error:  # a plugin that calls sys.exit() must not end the run so
            _settle(future, error=RuntimeError(repr(error)))
        else:
            _settle(future, answer)


def _settle(future: Future[Any], answer: Any = None, error: Exception | None = None) -> None:
    """Answer `future` unless it has been answered: the lane may be closed while its plugin still computes."""
    with suppress(InvalidStateError):
        if error is None:
            future.set_result(answer)
        else:
            future.set_exception(error)


def checked(name: str, answer: Any, count: int) -> Tensor:
    """A plugin's answer as [count] float64 on the CPU, infinity where it reports a failure.

    Raises:
        RewardError: it is not `count` numbers or failures.
    """
    if isinstance(answer, list | tuple):
        answer = [math.inf if isinstance(score, Exception) else score for score in answer]
    try:
        plain = answer.detach().cpu() if isinstance(answer, Tensor) else np.array(answer)
        values = torch.as_tensor(plain, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RewardError(
            f"reward {name} returned {type(answer).__name__} instead of {count} numbers: {error}"
        ) from error
    if tuple(values.shape) != (count,):
        raise RewardError(
            f"reward {name} returned scores of shape {list(values.shape)} for {count} images. "
            f"Expected [{count}], one score an image."
        )
    return values.clone()


def failure(answer: Any) -> Exception | None:
    """The first exception that stands in the place of a score in a plugin's answer."""
    scores = answer if isinstance(answer, list | tuple) else ()
    return next((score for score in scores if isinstance(score, Exception)), None)
