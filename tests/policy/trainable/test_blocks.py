"""Compiled blocks: one graph per adapter and kind of pass, whatever the batch."""

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


@pytest.fixture
def compiled(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A policy whose graphs are made as usual, and then run without a compiler.

    Its first block is of another kind and is not compiled here; tests/step/test_compiled_refresh.py has both.
    """
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    policy: Any = load_policy(replace(model, compile=Switch.true), seed=0)
    policy.network.transformer_blocks[0]._compiled_call_impl = None
    yield policy
    torch._dynamo.reset()


def make_graphs(policy: Any, samples: int, adapter: Any) -> int:
    """Pass so many samples through these weights; return the graphs made for it.

    The pass of the trained weights has gradients.
    """
    before = counters["stats"]["unique_graphs"]
    xt, t = torch.randn(samples, *policy.latent_shape), torch.full((samples,), 0.5)
    with torch.set_grad_enabled(adapter == "trained"):
        v = policy.velocity(xt, t, policy.encode(["a cup"] * samples), adapter)
    if v.requires_grad:
        v.sum().backward()
    return int(counters["stats"]["unique_graphs"] - before)


@WITHOUT_COMPILER_WARNINGS
def test_a_batch_of_another_size_compiles_nothing_and_its_velocities_are_right(
    compiled: Any, policy: Any, randomise: Callable[..., None]
) -> None:
    """Only a batch of one has graphs of its own, as torch takes a size of 1 for a constant.

    Every adapter has its own graphs, so one tells what comes of a first batch of one, and another of a last.
    """
    for one in (compiled, policy):
        randomise(one)
    assert [make_graphs(compiled, samples, None) for samples in (5, 3, 2, 8, 1, 3, 1)] == [
        *(1, 0, 0, 0),
        *(1, 0, 0),
    ]
    assert [make_graphs(compiled, samples, "trained") for samples in (1, 5, 3, 1)] == [1, 1, 0, 0]
    embeddings = policy.encode(["a cup"] * 5)
    for samples in (5, 2, 1):
        xt, t = torch.randn(samples, *policy.latent_shape), torch.full((samples,), 0.5)
        got, other = (one.velocity(xt, t, embeddings[:samples], "trained") for one in (compiled, policy))
        torch.testing.assert_close(got, other, rtol=1e-4, atol=1e-5)
