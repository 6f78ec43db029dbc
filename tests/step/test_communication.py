"""What ranks send in a step, and that nothing is sent after a failure."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from marble_cli.step.batches import chunks
from tests.step.directions import CACHE, STEP, DescentMaker, direct


@pytest.mark.parametrize(
    ("overrides", "rewards"),
    [
        (("balance=weighted_sum", "balance.refresh_every=1000", "balance.warmup=0"), 1),
        (("balance.refresh_every=1000", "balance.warmup=0"), 1),
        (("balance.mode=full",), 6),
    ],
)
def test_what_is_communicated(
    descent: DescentMaker,
    case: Any,
    monkeypatch: pytest.MonkeyPatch,
    overrides: tuple[str, ...],
    rewards: int,
) -> None:
    """An amortised step as much as one of a single mixture: a gradient and its losses. A refresh all at once.

    Two sums of velocities travel with the losses. That all passes have succeeded is agreed on, and losses are
    summed, before any gradient is: NCCL never ends where a rank does not take part.
    """
    made = descent(*overrides)
    told: list[object] = []

    @contextmanager
    def raise_together() -> Iterator[None]:
        told.append("passes")
        yield
        told.append("agreed")

    def watched(tensor: Tensor) -> Tensor:
        told.append(tuple(tensor.shape))
        return tensor

    monkeypatch.setattr(made.layout.ranks, "raise_together", raise_together)
    monkeypatch.setattr(made.layout.ranks, "all_reduce", watched)
    direct(made, case)
    size = sum(p.numel() for p in made.policy.parameters("trained").values())
    assert told == ["passes", "agreed", (rewards + 3,), (rewards, size)]


@pytest.mark.parametrize(
    "overrides", [("balance.mode=full",), ("balance.refresh_every=1000", "balance.warmup=0")]
)
def test_a_pass_that_fails_sends_no_gradient(
    descent: DescentMaker, case: Any, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    """In the last micro-batch, in a refresh and in an amortised step."""
    made = descent(*overrides)
    left = len(chunks(case.data, made.objective.micro_batch_size))

    def advance(count: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(
        made.layout.ranks, "all_reduce", lambda tensor: pytest.fail("a sum over ranks was begun")
    )
    with pytest.raises(torch.OutOfMemoryError):
        made.direct(STEP, case.signal, case.data, CACHE, advance)
