"""Offloaded blocks in every family: the same bits from weights that are there only while a block computes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from marble_cli.config.enums import Offload, Switch
from marble_cli.policy.load import load_policy
from marble_cli.policy.offload import BlockOffload, Copy
from marble_cli.policy.trainable.blocks import repeated_blocks
from marble_cli.policy.trainable.lora_layer import LoraMatrix
from marble_cli.step.per_sample import PerSampleGradients
from tests.policy.families.cases import Case
from tests.policy.families.pipelines import ONE_PER_NETWORK

pytestmark = pytest.mark.parametrize("case", ONE_PER_NETWORK, indirect=True)


def frozen(policy: Any) -> list[nn.Parameter]:
    """The parameters of the blocks without those of adapters."""
    modules = [module for block in repeated_blocks(policy.network) for module in block.modules()]
    return [p for m in modules if not isinstance(m, LoraMatrix) for p in m.parameters(recurse=False)]


@dataclass(frozen=True)
class Passes:
    """The family's policy with offloaded blocks, its `results`, and the copies of blocks that these took."""

    policy: Any
    results: list[Tensor]
    buffers: list[StorageWeakRef]
    at_once: list[int]  # copies that were there after each was made
    left: int  # copies that are there in the end


@pytest.fixture(scope="module")
def offloaded(case: Case, randomise: Callable[..., None]) -> Passes:
    """A parameter that is used between calls is not a number; on a GPU it would be on the wrong device."""
    policy: Any = load_policy(replace(case.model, offload=Offload.blocks), seed=0)
    randomise(policy)
    for parameter in frozen(policy):
        parameter.data = torch.full_like(parameter, torch.nan)
    copy, buffers, at_once = BlockOffload._copy, list[StorageWeakRef](), list[int]()

    def there() -> int:
        return sum(not buffer.expired() for buffer in buffers)

    def counted(self: BlockOffload, block: int) -> Copy:
        made = copy(self, block)
        buffers.append(StorageWeakRef(made.buffer.untyped_storage()))
        at_once.append(there())
        return made

    with pytest.MonkeyPatch.context() as change:
        change.setattr(BlockOffload, "_copy", counted)
        found = results(case, policy)
    return Passes(policy, found, buffers, at_once, there())


def results(case: Case, policy: Any) -> list[Tensor]:
    """Velocities of all adapters, and gradients of two mixtures by two backward passes on one graph."""
    at, draw = (case.start(), case.times, case.encode(case.policy)), torch.Generator().manual_seed(5)
    with torch.no_grad():
        found = [policy.velocity(*at, adapter) for adapter in ("trained", "behaviour", None)]
    cotangent, coefficients = torch.randn(at[0].shape, generator=draw), torch.randn(2, 3, generator=draw)
    rows = torch.zeros(2, sum(p.numel() for p in policy.parameters("trained").values()))
    mixer = PerSampleGradients(policy.layers(), rows)
    with mixer.watching():
        v = policy.velocity(*at, "trained")
        for kept in (True, False):
            mixer.mix(v, cotangent, coefficients, retain_graph=kept)
    policy.velocity(*at, "trained").backward(cotangent)
    parameters = policy.parameters("trained").values()
    plain = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    policy.network.zero_grad()  # others have the policy, too
    return [*found, v.detach(), rows, *plain]


def test_velocities_and_gradients_have_the_same_bits(case: Case, offloaded: Passes) -> None:
    policy, kept = offloaded.policy, case.load(gradient_checkpointing=Switch.true)
    for found, expected in zip(offloaded.results, results(case, kept), strict=True):
        assert found.equal(expected)
        assert found.isfinite().all()
    adapters = {id(module.weight) for module in policy.network.modules() if isinstance(module, LoraMatrix)}
    held = (id(p) for adapter in ("trained", "behaviour") for p in policy.parameters(adapter).values())
    assert set(held) == adapters, "the optimizer holds these objects"
    assert all(parameter.isnan().all() for parameter in frozen(policy)), "none was left in a block"


def test_two_blocks_at_most_are_on_the_device(offloaded: Passes) -> None:
    """While each is called, in forward passes and in backward passes."""
    passes, blocks = 3 + 2 * 1 + 3, len(repeated_blocks(offloaded.policy.network))
    assert max(offloaded.at_once) == 2
    assert len(offloaded.buffers) >= passes * blocks
    assert not offloaded.left, "nothing stays behind"
