"""A step's passes wait for their device a constant number of times, whatever the number of micro-batches.

The device is torch's `meta`, which computes shapes. A number that is read from it waits, and so does a copy
that is not asynchronous.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from marble_cli.config.enums import SharedTerm
from marble_cli.objective.coefficients import reward_coefficients
from marble_cli.policy.base import PromptEmbeddings
from marble_cli.policy.load import load_policy
from marble_cli.policy.pipeline import PipelinePolicy
from marble_cli.step import passes
from marble_cli.step.batches import chunks
from marble_cli.step.gradients import mixture_gradient, reward_gradients
from marble_cli.step.passes import Step
from marble_cli.step.step_gram import velocity_gram
from tests.step.conftest import DoublePolicy

META = torch.device("meta")
READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
COUNTS = (1, 2)  # of micro-batches of 6 images


class Waits(TorchDispatchMode):
    """Count operations that wait for the device `meta`, and answer its reads with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        indices = [i for value in args if isinstance(value, list) for i in value if isinstance(i, Tensor)]
        devices = {tensor.device for tensor in (*tensors, *indices) if tensor.dim()}
        from_meta = any(tensor.device == META for tensor in tensors)
        if func in READS and from_meta:
            self.count += 1
            return 0.0
        if func in COPIES:
            target = kwargs.get("device") or tensors[0].device
            if target != tensors[-1].device and not kwargs.get("non_blocking"):
                self.count += 1
            if target != META and from_meta:
                return torch.zeros(tensors[0].shape, dtype=kwargs.get("dtype") or tensors[0].dtype)
        else:
            self.count += len(devices) > 1  # a CPU tensor is copied to the device implicitly
        return func(*args, **kwargs)


@pytest.fixture(params=[torch.float32, torch.float16], ids=str)
def meta_policy(
    request: pytest.FixtureRequest, double_policy: DoublePolicy, monkeypatch: pytest.MonkeyPatch
) -> PipelinePolicy:
    """A policy on `meta`. Its dtype decides whether cotangents are rescaled; `meta` has no autocast."""

    def place(transformer: nn.Module, blocks: object, device: torch.device, dtype: torch.dtype) -> None:
        del transformer.transformer_blocks[0]  # type: ignore[operator, union-attr]  # each waits alike
        transformer.to(META)

    policy = load_policy(double_policy.model, seed=0, place=place)
    monkeypatch.setattr(policy, "velocity", partial(DoublePolicy.velocity, policy))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    policy.device, policy.dtype = META, request.param
    policy.parameters("behaviour")  # whole transformers are copied at first use
    return policy


def on_meta(case: Any, policy: PipelinePolicy) -> Step:
    tensors = {name: tensor.float().to(META) for name, tensor in case.data.embeddings.tensors.items()}
    data = replace(case.data, x0=case.data.x0.float().to(META), embeddings=PromptEmbeddings(tensors))
    return replace(case.step(policy), data=data, objective=replace(case.objective, micro_batch_size=6))


def count_waits(case: Any, policy: PipelinePolicy, passes: str, micro_batches: int) -> int:
    """Count the waits of one kind of passes over so many micro-batches."""
    step, signal = on_meta(case, policy), case.signal
    two = signal.optimality[:2], signal.applicable[:2]  # more rewards wait alike
    made = reward_coefficients(*two, shared_term=SharedTerm.outside)
    parts = chunks(step.data, 6)[:micro_batches]
    with Waits() as waits:
        if passes == "mixture":
            mixture_gradient(step, parts, made.shared)
        elif passes == "rewards":
            reward_gradients(step, parts, made.rewards, made.shared)
        else:
            velocity_gram(step, parts, made.rewards)
    return waits.count


def assert_constant(few: int, many: int) -> None:
    assert few == many
    assert 0 < few < 16


@pytest.mark.parametrize(
    ("meta_policy", "passes"),
    # Nothing but a backward pass reads the dtype.
    [(torch.float32, "rewards"), (torch.float16, "rewards"), (torch.float16, "velocities")],
    indirect=["meta_policy"],
    ids=str,
)
def test_waits_do_not_grow_with_the_micro_batches(
    case: Any, meta_policy: PipelinePolicy, passes: str
) -> None:
    assert_constant(*(count_waits(case, meta_policy, passes, count) for count in COUNTS))


def test_waits_of_a_mixture_grow_only_if_every_micro_batch_waits(
    case: Any, meta_policy: PipelinePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    kl_term = passes.kl_term

    def waiting(v_theta: Tensor, v_ref: Tensor) -> Tensor:
        kl = kl_term(v_theta, v_ref)
        kl.sum().item()
        return kl + kl.detach().cpu().to(META)

    few, many = (count_waits(case, meta_policy, "mixture", count) for count in COUNTS)
    assert_constant(few, many)
    monkeypatch.setattr(passes, "kl_term", waiting)
    assert count_waits(case, meta_policy, "mixture", 2) - many == 3 * 2
