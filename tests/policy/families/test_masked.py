"""Families that pad prompts know their lengths on the CPU, so that no velocity waits for the device."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from marble_cli.policy.base import PromptEmbeddings, RepeatedEmbeddings
from tests.policy.families.cases import PROMPTS, TIMES, Case

MASKED = ("qwen_image", "qwen_image_edit", "sana", "z_image", "lumina2")
# Methods that read a tensor's values on the CPU, and operations whose result's shape depends on values.
READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")
SHAPED_BY_VALUES = ("nonzero", "masked_select", "_unique2", "_local_scalar_dense")


class Waits(TorchDispatchMode):
    """Record the operations that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype is torch.bool for index in args[1]
        )
        if name in SHAPED_BY_VALUES or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def recorded_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    with monkeypatch.context() as change, Waits() as waits:
        for name in READS:
            original = getattr(Tensor, name)

            def read(self: Tensor, *args: Any, _name: str = name, _original: Any = original) -> Any:
                waits.found.append(_name)
                return _original(self, *args)

            change.setattr(Tensor, name, read)
        yield waits.found


def test_every_wait_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.tensor([True, False])
    with recorded_waits(monkeypatch) as waits:
        mask.sum().item()
        mask.tolist()
        mask.cpu()
        assert mask.any()
        mask.nonzero()
        torch.ones(2)[mask]
    assert {"item", "tolist", "cpu", "__bool__", "nonzero", "index"} <= set(waits)


@pytest.mark.parametrize("case", MASKED, indirect=True)
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1] * 3], ids=["padded", "of one length"])
@torch.no_grad()
def test_no_velocity_reads_a_tensor(case: Case, prompts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    policy, at = case.policy, (case.start(), TIMES)
    embeddings = case.encode(policy, prompts)
    policy.velocity(*at, embeddings, "trained")  # a first pass also makes tables of positions
    with recorded_waits(monkeypatch) as waits:
        for adapter in ("trained", None):
            policy.velocity(*at, embeddings, adapter)
    # Lumina 2 asks a mask that is on the CPU with every device: its plan, without a device, asks it, too.
    assert waits == ["tolist"] * (2 if case.tiny.choice == "lumina2" else 0)


@pytest.mark.parametrize("case", MASKED, indirect=True)
def test_lengths_follow_the_rows_through_cache_and_index(case: Case) -> None:
    for policy in (case.policy, case.cached):
        whole = case.encode(policy)
        lengths = whole.tensors["mask"].sum(1).tolist()
        assert list(whole.lengths or ()) == lengths
        assert len(set(lengths)) == len(PROMPTS)
        assert whole[1:].lengths == tuple(lengths[1:])
        assert whole[torch.tensor([2, 0, 2])].lengths == (lengths[2], lengths[0], lengths[2])
        repeated = RepeatedEmbeddings(whole.each(), torch.tensor([0, 0, 1, 1, 2, 2]))
        assert repeated[torch.tensor([5, 1])].lengths == (lengths[2], lengths[0])
        assert repeated[2:4].lengths == (lengths[1], lengths[1])
        joined = PromptEmbeddings.joined([whole[1:], whole[:1]])
        assert joined.lengths == (*lengths[1:], lengths[0])


@pytest.mark.parametrize("case", ["sd3", "flux_dev", "chroma"], indirect=True)
def test_prompts_that_are_not_masked_have_no_lengths(case: Case) -> None:
    whole = case.encode(case.policy)
    assert whole.lengths is whole[:1].lengths is PromptEmbeddings.joined([whole, whole]).lengths is None
