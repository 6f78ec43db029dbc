"""The pair of LoRA adapters: its layers compute what peft's do, and its switches leave them as peft's do."""

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from marble_cli.policy.base import Adapter
from marble_cli.policy.trainable.lora_layer import LoraLinear
from tests.policy.operations import CountedOperations

ORDER: tuple[Adapter, ...] = ("behaviour", None, "trained", None, None, "behaviour", "trained")


def switch_by_peft(policy: Any, adapter: Adapter) -> None:
    """Make an adapter the active one by the methods of diffusers and peft."""
    if adapter is None:
        policy.network.disable_adapters()
    else:
        policy.network.enable_adapters()
        policy.network.set_adapter(adapter)
    # peft makes the active adapter the one that requires gradients, which decides how torch multiplies.
    for name in ("trained", "behaviour"):
        for parameter in policy.parameters(name).values():
            parameter.requires_grad_(name == "trained")


def reported(transformer: Any) -> list[tuple[list[str], bool]]:
    """Return each adapted layer's active adapters, and whether they are disabled, as peft reports them."""
    layers = [module for module in transformer.modules() if isinstance(module, BaseTunerLayer)]
    return [(layer.active_adapters, layer.disable_adapters) for layer in layers]


@torch.no_grad()
def velocity(policy: Any, adapter: Adapter) -> Tensor:
    """Return the velocity of fixed latents, without a switch of the policy's own."""
    policy.trainable._active = adapter
    xt = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    found: Tensor = policy.velocity(xt, torch.tensor([0.3, 0.9]), policy.encode(["a cup", "boats"]), adapter)
    return found


def test_switches_equal_pefts_own_bit_for_bit(policy: Any, randomise: Callable[..., None]) -> None:
    randomise(policy)
    by_peft, ours = [], []
    for adapter in ORDER:
        switch_by_peft(policy, adapter)
        by_peft.append((reported(policy.network), velocity(policy, adapter)))
    for adapter in ORDER:
        policy.trainable.activate(adapter)
        ours.append((reported(policy.network), velocity(policy, adapter)))
    for (state, one), (expected, two) in zip(ours, by_peft, strict=True):
        assert state == expected
        assert torch.equal(one, two)
    assert not any(torch.equal(ours[0][1], other) for _, other in ours[1:3])


@pytest.mark.parametrize("adapter", ORDER[:3])
def test_gradients_are_required_of_the_trained_adapter_alone(policy: Any, adapter: Adapter) -> None:
    policy.trainable.activate(adapter)
    requiring = {id(p) for p in policy.network.parameters() if p.requires_grad}
    assert requiring == {id(p) for p in policy.parameters("trained").values()}


RANK, WIDTH = 4, 32


def make_layer(kind: Any, alpha: int, dtype: torch.dtype = torch.float32) -> Any:
    """Make an adapted linear layer with float32 adapters; all kinds get the same weights."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=RANK, lora_alpha=alpha)
    layer = kind(nn.Linear(WIDTH, WIDTH).to(dtype), "trained", config=config, r=RANK, lora_alpha=alpha)
    for matrix in (layer.lora_A["trained"], layer.lora_B["trained"]):
        matrix.weight.data = torch.randn(matrix.weight.shape)
    return layer


def run_layer(layer: Any, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return a layer's output, and the gradients of its input, A and B."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(3, 5, WIDTH, generator=draw).to(dtype).requires_grad_()
    output = layer(x)
    cotangent = torch.randn(output.shape, generator=draw).to(dtype)
    weights = (layer.lora_A["trained"].weight, layer.lora_B["trained"].weight)
    return [output.detach(), *torch.autograd.grad(output, (x, *weights), cotangent)]


@pytest.mark.parametrize("alpha", [RANK, 2 * RANK])
def test_layer_computes_what_pefts_does(alpha: int) -> None:
    """A power of two as alpha / rank rounds nothing, wherever it is multiplied."""
    with torch.random.fork_rng(devices=[]):
        ours, pefts = (run_layer(make_layer(kind, alpha)) for kind in (LoraLinear, peft.tuners.lora.Linear))
    for one, other in zip(ours, pefts, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_layer_scales_its_adapter_in_every_type(dtype: torch.dtype) -> None:
    """Against W x + alpha / rank B A x in float64 on the same rounded W and x."""
    with torch.random.fork_rng(devices=[]):
        layer, exact = make_layer(LoraLinear, 3, dtype), make_layer(LoraLinear, 3, dtype).double()
    found = run_layer(layer, dtype)
    assert [tensor.dtype for tensor in found] == [dtype, dtype, torch.float32, torch.float32]
    x = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype).double()
    a, b = (matrices["trained"].weight for matrices in (exact.lora_A, exact.lora_B))
    expected = exact.base_layer(x) + 3 / RANK * (x @ a.mT @ b.mT)
    assert (found[0] - expected).norm() < 4 * torch.finfo(dtype).eps * expected.norm()


def test_half_precision_casts_only_a_and_b() -> None:
    """Two casts per layer in a forward pass, and their two in the backward pass."""
    with torch.random.fork_rng(devices=[]):
        layer = make_layer(LoraLinear, 2 * RANK, torch.bfloat16)
    x = torch.ones(2, 3, WIDTH, dtype=torch.bfloat16)
    with CountedOperations() as forward:
        output = layer(x)
    with CountedOperations() as backward:
        output.backward(torch.ones_like(output))
    assert (forward.calls["_to_copy"], backward.calls["_to_copy"]) == (2, 2)
    assert (forward.calls["mul"], forward.calls["add"]) == (0, 1)
