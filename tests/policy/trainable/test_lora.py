"""The pair of LoRA adapters: switching between them leaves peft's layers as peft's own switches do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from marble_cli.policy.base import Adapter

ORDER: tuple[Adapter, ...] = ("behaviour", None, "trained", None, None, "behaviour", "trained")


def switch_by_peft(policy: Any, adapter: Adapter) -> None:
    """Make an adapter the active one by the methods of diffusers and peft."""
    if adapter is None:
        policy.transformer.disable_adapters()
    else:
        policy.transformer.enable_adapters()
        policy.transformer.set_adapter(adapter)
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
        by_peft.append((reported(policy.transformer), velocity(policy, adapter)))
    for adapter in ORDER:
        policy.trainable.activate(adapter)
        ours.append((reported(policy.transformer), velocity(policy, adapter)))
    for (state, one), (expected, two) in zip(ours, by_peft, strict=True):
        assert state == expected
        assert torch.equal(one, two)
    assert not any(torch.equal(ours[0][1], other) for _, other in ours[1:3])


@pytest.mark.parametrize("adapter", ORDER[:3])
def test_gradients_are_required_of_the_trained_adapter_alone(policy: Any, adapter: Adapter) -> None:
    policy.trainable.activate(adapter)
    requiring = {id(p) for p in policy.transformer.parameters() if p.requires_grad}
    assert requiring == {id(p) for p in policy.parameters("trained").values()}
