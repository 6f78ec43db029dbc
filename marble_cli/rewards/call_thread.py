"""The thread in which a reward is called, apart from the thread that waits for its answer."""

import copy
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from marble_cli.rewards.api import Batch
from marble_cli.rewards.guard import Guard, Stage
from marble_cli.rewards.registry import Reward

IMMUTABLE = {str, int, float, bool, type(None)}

Calls = queue.SimpleQueue[tuple[Batch, Future[Any]] | None]


class CallThread:
    """A daemon thread that calls one reward, so that a call that hangs can be abandoned."""

    def __init__(self, reward: Reward) -> None:
        self.calls: Calls = queue.SimpleQueue()
        self.thread = threading.Thread(
            target=_serve_calls,
            args=(reward.call, reward.guard, self.calls),
            name=f"call-{reward.name}",
            daemon=True,
        )
        self.thread.start()

    def call(self, batch: Batch, future: Future[Any]) -> None:
        """Queue a call; its answer or exception is set on `future`."""
        self.calls.put((batch, future))

    def finish(self) -> None:
        """End the thread after the calls that are queued."""
        self.calls.put(None)


def _serve_calls(call: Callable[[Batch], Any], guard: Guard, calls: Calls) -> None:
    while (item := calls.get()) is not None:
        batch, future = item
        try:
            with torch.inference_mode():
                answer = guard.run(Stage.CALL, partial(call, batch))
        except Exception as error:  # the caller decides what follows
            settle(future, error=error)
        else:
            settle(future, answer)
        del item, batch, future  # an idle thread keeps no batch alive


def settle(future: Future[Any], answer: Any = None, error: Exception | None = None) -> None:
    """Set the result of `future` unless it has one: a worker may be closed while its reward computes."""
    with suppress(InvalidStateError):
        if error is None:
            future.set_result(answer)
        else:
            future.set_exception(error)


def move_calls_to_thread(reward: Reward) -> Reward:
    """Return the reward with its calls made in a thread of its own, as in a run but without a timeout."""
    thread = CallThread(reward)

    def call(batch: Batch) -> Any:
        future: Future[Any] = Future()
        thread.call(batch, future)
        return future.result()

    def close() -> None:
        thread.finish()
        reward.close()

    return replace(reward, call=call, close=close)


def copy_batch(batch: Batch) -> Batch:
    """Return a copy of a batch that shares nothing with the original."""
    return Batch(
        batch.images.clone(),
        list(batch.prompts),
        [_copy_value(dict(row)) for row in batch.metadata],
        None if batch.conditions is None else batch.conditions.clone(),
        None if batch.frames is None else batch.frames.clone(),
    )


def _copy_value(value: Any) -> Any:
    """Copy a value of metadata; for JSON's types this is many times faster than `copy.deepcopy`."""
    kind = type(value)
    if kind is dict:
        return {key: _copy_value(part) for key, part in value.items()}
    if kind is list:
        return [_copy_value(part) for part in value]
    return value if kind in IMMUTABLE else copy.deepcopy(value)
