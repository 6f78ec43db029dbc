"""Compiled blocks: one graph per kind of block, adapter and kind of pass, whatever the batch."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from marble_cli.config.enums import Switch
from marble_cli.config.schema import ModelConfig
from marble_cli.policy.load import load_policy
from tests.policy.trainable.compiler import WITHOUT_COMPILER_WARNINGS

KINDS = 2  # of blocks: the last one drops the text


@pytest.fixture
def compiled(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A policy whose graphs are made as usual, and then run without a compiler."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    yield load_policy(replace(model, compile=Switch.true), seed=0)
    torch._dynamo.reset()


def graphs_after(policy: Any, samples: int, drawing: tuple[Any, ...]) -> int:
    """Pass so many samples through these weights and the trained ones, and return the graphs made so far."""
    xt, t = torch.randn(samples, *policy.latent_shape), torch.full((samples,), 0.5)
    at = (xt, t, policy.encode(["a cup"] * samples))
    with torch.no_grad():
        for adapter in drawing:
            policy.velocity(*at, adapter)
    policy.velocity(*at, "trained").sum().backward()
    return int(counters["stats"]["unique_graphs"])


@WITHOUT_COMPILER_WARNINGS
@pytest.mark.parametrize(
    ("sizes", "expected", "drawing"),
    [
        ((5, 3, 2, 8, 1, 3, 1), (1, 1, 1, 1, 2, 2, 2), ("behaviour", None)),
        # Every pass has its own graphs, so one tells what comes of a first batch of one.
        ((1, 5, 3), (1, 2, 2), ()),
    ],
)
def test_a_batch_of_another_size_compiles_nothing_and_its_velocities_are_right(
    compiled: Any,
    policy: Any,
    randomise: Callable[..., None],
    sizes: tuple[int, ...],
    expected: tuple[int, ...],
    drawing: tuple[Any, ...],
) -> None:
    """Only a batch of one has graphs of its own, as torch takes a size of 1 for a constant."""
    passes = len(drawing) + 1
    for one in (compiled, policy):
        randomise(one)
    found = [graphs_after(compiled, samples, drawing) for samples in sizes]
    assert found == [times * KINDS * passes for times in expected]
    embeddings = policy.encode(["a cup"] * 5)
    for samples in (5, 2, 1):
        xt, t = torch.randn(samples, *policy.latent_shape), torch.full((samples,), 0.5)
        got, other = (one.velocity(xt, t, embeddings[:samples], "trained") for one in (compiled, policy))
        torch.testing.assert_close(got, other, rtol=1e-4, atol=1e-5)
