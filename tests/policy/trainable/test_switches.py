"""Gradient checkpointing, offload and compilation change memory and speed, and nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from marble_cli.config.enums import Offload, Switch
from marble_cli.config.schema import ModelConfig
from marble_cli.policy.load import load_policy
from marble_cli.policy.trainable import blocks
from marble_cli.policy.trainable.blocks import repeated_blocks
from marble_cli.step.per_sample import PerSampleGradients
from tests.policy.trainable.compiler import NEEDS_COMPILER, WITHOUT_COMPILER_WARNINGS

ADAPTERS = ("trained", None, "behaviour", "trained")
COMPILED = [NEEDS_COMPILER, WITHOUT_COMPILER_WARNINGS]
# Compiled blocks that stay on the device are the subject of tests/step/test_compiled_refresh.py.
SWITCHES = [
    pytest.param({"gradient_checkpointing": Switch.true}, id="gradient_checkpointing"),
    pytest.param({"offload": Offload.blocks}, id="offload"),
    pytest.param({"compile": Switch.true, "offload": Offload.blocks}, id="both", marks=COMPILED),
]


def results(policy: Any, randomise: Callable[..., None], adapters: Sequence[Any]) -> list[Tensor]:
    """Velocities of adapters, plain gradients, and those of two mixtures from one backward pass each."""
    randomise(policy)
    xt = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0)).to(policy.device)
    at = (xt, torch.tensor([0.3, 0.9]).to(xt), policy.encode(["a red cup", "two boats"]))
    found = []
    for adapter in adapters:
        with torch.no_grad():
            found.append(policy.velocity(*at, adapter))
    parameters = list(policy.parameters("trained").values())
    v = policy.velocity(*at, "trained")
    cotangent = torch.linspace(-1, 1, v.numel()).view_as(v).to(v)
    found += torch.autograd.grad(v, parameters, cotangent)
    rows = v.new_zeros(2, sum(p.numel() for p in parameters))
    mixer = PerSampleGradients(policy.layers(), rows)
    with mixer.watching():
        v = policy.velocity(*at, "trained")
        for kept in (True, False):
            mixer.mix(v, cotangent, torch.tensor([[1.0, 0.0], [0.5, 2.0]]), retain_graph=kept)
    return [*found, rows]


@pytest.mark.parametrize("switch", SWITCHES)
def test_switch_changes_no_velocity_and_no_gradient(
    model: ModelConfig,
    policy: Any,
    randomise: Callable[..., None],
    switch: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapters: Sequence[Any] = ADAPTERS
    if "compile" in switch and policy.device.type == "cpu":
        # Tracing takes seconds; test_compiled_refresh has all adapters and blocks, with gradients to 1e-10.
        adapters = ADAPTERS[2:3]
        monkeypatch.setattr(blocks, "repeated_blocks", lambda network: repeated_blocks(network)[:1])
    other = load_policy(replace(model, **switch), seed=0)
    assert other.compiled == ("compile" in switch)
    with torch.random.fork_rng(devices=[]):
        got, expected = results(other, randomise, adapters), results(policy, randomise, adapters)
    assert expected[-1].any(1).all()
    # In norm: where terms of a sum cancel out, another order of it leaves any relative error.
    for one, two in zip(got, expected, strict=True):
        assert (one - two).norm() < 2e-5 * two.norm()


def saved_bytes(policy: Any) -> int:
    """Return the bytes that a forward pass keeps for its backward pass, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in policy.network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    xt = torch.randn(16, *policy.latent_shape, device=policy.device)
    embeddings = policy.encode(["a red cup"] * 16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.velocity(xt, torch.full_like(xt[:, 0, 0, 0], 0.5), embeddings, "trained")
    return sum(kept.values())


def test_gradient_checkpointing_saves_memory(model: ModelConfig, policy: Any) -> None:
    checkpointed = load_policy(replace(model, gradient_checkpointing=Switch.true), seed=0)
    assert saved_bytes(checkpointed) < 0.5 * saved_bytes(policy)


@NEEDS_COMPILER
def test_compile_compiles_every_block(model: ModelConfig) -> None:
    compiled = load_policy(replace(model, compile=Switch.true), seed=0)
    assert all(block._compiled_call_impl is not None for block in compiled.network.transformer_blocks)
    assert isinstance(compiled.network.transformer_blocks, nn.ModuleList)
