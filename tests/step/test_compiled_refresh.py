"""Refreshes through compiled blocks: the same gradients, from code that is compiled once."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.utils import counters
from torch.fx import GraphModule

from marble_cli.config.enums import SharedTerm, Train
from marble_cli.objective.coefficients import reward_coefficients
from marble_cli.policy.trainable.blocks import compile_blocks, repeated_blocks
from marble_cli.step.batches import Chunk
from marble_cli.step.compiled_per_sample import CompiledPerSampleGradients
from marble_cli.step.gradients import Gradients, mixture_gradient, reward_gradients
from marble_cli.step.per_sample import PerSampleGradients
from tests.policy.trainable.compiler import NEEDS_COMPILER, WITHOUT_COMPILER_WARNINGS
from tests.step.directions import distance

# Whole transformers are refreshed by one backward pass per reward, which stays eager.
LORA = pytest.mark.parametrize("double_policy", [Train.lora], indirect=True)
KINDS, PASSES = 2, 3  # of blocks; of the trained, behaviour and base weights
BACKENDS: list[str] = []  # of the graphs in their order
SIZES = (16, "24x16", 24, "16x32")  # pixels, the first the policy's own
UNEVEN = [Chunk(rows, column) for column in (0, 1) for rows in torch.arange(12).split([5, 5, 2])]


def compile_refreshes(graph: GraphModule, inputs: list[Any]) -> Any:
    """Compile the backward passes of a refresh's graphs, without machine code; run all others as they are."""
    per_sample = any("autograd_function" in str(node.target) for node in graph.graph.nodes)
    kind = "aot_eager" if per_sample else "eager"
    BACKENDS.append(kind)
    return lookup_backend(kind)(graph, inputs)


@pytest.fixture
def compile_now(double_policy: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that compiles the policy's blocks until the test ends, without machine code."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compile_refreshes))
    torch._dynamo.reset()
    counters.clear()
    BACKENDS.clear()
    yield lambda: compile_blocks(double_policy.network)
    for block in repeated_blocks(double_policy.network):
        block._compiled_call_impl = None
    torch._dynamo.reset()


def take_steps(case: Any, policy: Any) -> Iterator[Gradients]:
    """Take an amortised step's gradients, then a refresh's with all of its backward passes."""
    signal, step = case.signal, case.step(policy)
    made = reward_coefficients(signal.optimality, signal.applicable, shared_term=SharedTerm.inside)
    outside = reward_coefficients(signal.optimality, signal.applicable, shared_term=SharedTerm.outside).shared
    yield mixture_gradient(step, UNEVEN, outside)
    yield reward_gradients(step, UNEVEN, made.rewards, outside)


def draw_sizes(case: Any, policy: Any) -> Iterator[torch.Tensor]:
    """Draw velocities of each size, of as many images as a micro-batch has."""
    embeddings, t = case.data.embeddings[:5], torch.linspace(0.1, 0.9, 5)
    for size in SIZES:
        other = policy.resized(size)
        xt = torch.randn(5, *other.latent_shape, generator=torch.Generator().manual_seed(5)).double()
        with torch.no_grad():
            yield other.velocity(xt, t, embeddings, None)


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


@LORA
@WITHOUT_COMPILER_WARNINGS
def test_a_compiled_refresh_has_the_same_gradients_from_code_of_its_own(
    case: Any, double_policy: Any, compile_now: Any
) -> None:
    """The trained weights' forward pass has graphs of its own in a refresh, on top of an amortised step's."""
    expected = list(take_steps(case, double_policy))
    eager = list(draw_sizes(case, double_policy))
    kinds = [type(layer) for layer in double_policy.layers()]
    assert not double_policy.compiled
    compile_now()
    assert double_policy.compiled
    steps = take_steps(case, double_policy)
    amortised, of_amortised = next(steps), graphs()
    refresh, of_both = next(steps), graphs()
    assert of_amortised == KINDS * PASSES, "micro-batches of another size compile nothing"
    assert of_both == of_amortised + KINDS
    assert ["eager"] * of_amortised + ["aot_eager"] * KINDS == BACKENDS
    again = list(take_steps(case, double_policy))
    assert graphs() == of_both, "the second step compiles nothing"
    made = []
    for velocity, wanted in zip(draw_sizes(case, double_policy), eager, strict=True):
        made.append(graphs() - of_both)
        assert distance(velocity, wanted) < 1e-10
    assert made == [0, KINDS, KINDS, KINDS], "the second size has code that serves all further ones"
    assert not counters["graph_break"]
    for found in ([amortised, refresh], again):
        for one, other in zip(found, expected, strict=True):
            assert distance(one.losses, other.losses) < 1e-12
            for row, wanted in zip(one.rows, other.rows, strict=True):
                assert distance(row, wanted) < 1e-10 or not (row.any() or wanted.any())
    assert [type(layer) for layer in double_policy.layers()] == kinds
    assert all(parameter.grad is None for parameter in double_policy.parameters("trained").values())


@NEEDS_COMPILER
@WITHOUT_COMPILER_WARNINGS
def test_machine_code_has_the_same_gradients() -> None:
    """Two backward passes of a compiled block on one forward pass, for a layer that is used twice."""
    torch._dynamo.reset()
    draw = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(4, 4, bias=False)
    x, cotangent, c = (torch.randn(*size, generator=draw) for size in ((3, 5, 4), (3, 5, 4), (2, 3)))
    found = []
    for kind in (PerSampleGradients, CompiledPerSampleGradients):
        rows = torch.zeros(2, 16)
        mixer, block = kind([linear], rows), torch.nn.Sequential(linear, torch.nn.GELU(), linear)
        block.compile()
        with mixer.watching():
            mixer.expect(3)
            output = block(x)
            mixer.mix(output, cotangent, c, retain_graph=True)
            mixer.mix(output, 2 * cotangent, c, retain_graph=False)
        found.append(rows)
    assert distance(found[1].double(), found[0].double()) < 1e-6
    assert linear.weight.grad is None
    assert type(linear) is torch.nn.Linear
