"""What the plan counts without weights, against counters around real passes of every family."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from marble_cli.config.enums import Switch, Train
from marble_cli.policy import cost, peak
from marble_cli.policy.base import PromptEmbeddings
from marble_cli.policy.load import load_policy
from marble_cli.policy.model_size import PassCost
from marble_cli.policy.size import model_size
from tests.policy.families.cases import PROMPTS, TIMES, Case
from tests.policy.families.pipelines import ONE_PER_NETWORK, ONE_UNET, TRANSFORMERS
from tests.policy.families.test_decoding import allocated


def attention_forward(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    return sdpa_flop_count(query, key, value)


def attention_backward(gradient: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# The CPU's kernel of attention, which the counter does not know.
KERNELS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
}


def counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=KERNELS)


def one_sample(case: Case, policy: Any) -> tuple[Tensor, Tensor, PromptEmbeddings]:
    """Latents, time and a prompt as long as the plan takes it to be."""
    tensors = dict(case.encode(policy, PROMPTS[:1]).tensors)
    if "mask" in tensors:
        tensors["mask"] = torch.ones_like(tensors["mask"])
    return case.start()[:1], TIMES[:1], PromptEmbeddings(tensors, (tensors["tokens"].shape[1],))


def count(case: Case, policy: Any) -> PassCost:
    """FLOP, and bytes of the storages that the forward pass saves, of a pass over one sample."""
    sample = one_sample(case, policy)
    policy.trainable.activate("trained")
    weights = {
        p.untyped_storage().data_ptr() for p in getattr(policy.pipeline, policy.family.network).parameters()
    }
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive, or its address would be used again
        return tensor

    with (
        counter() as forward,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        velocity = policy.velocity(*sample, "trained")
    with counter() as backward:
        torch.autograd.grad(velocity.sum(), list(policy.parameters("trained").values()), allow_unused=True)
    saved = sum(size for size, _ in kept.values())
    return PassCost(forward.get_total_flops(), backward.get_total_flops(), saved, saved)


@pytest.mark.parametrize(
    ("case", "train"),
    [*((case, Train.lora) for case in ONE_UNET), *((case, Train.full) for case in ONE_PER_NETWORK)],
    indirect=["case"],
    ids=lambda given: getattr(given, "value", given),
)
def test_plan_counts_what_a_pass_takes(case: Case, train: Train) -> None:
    model = replace(case.model, train=train)
    policy = case.policy if train is Train.lora else load_policy(model, seed=0)
    size, real = model_size(model, pictures=case.tiny.pictures), count(case, policy)
    assert size is not None
    for figure in ("forward", "backward", "kept"):
        assert getattr(size.cost, figure) == pytest.approx(getattr(real, figure), rel=0.1), figure
    assert 2 * real.kept < size.most_kept


# A UNet's convolutions take working memory on a CPU.
@pytest.mark.parametrize("case", [name for name in ONE_PER_NETWORK if name in TRANSFORMERS], indirect=True)
def test_a_velocity_without_a_gradient_takes_what_is_planned(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peak, "ROUNDED", 1)
    size, sample = model_size(case.model, pictures=case.tiny.pictures), one_sample(case, case.policy)
    assert size is not None
    real = allocated(lambda: case.policy.velocity(*sample, "behaviour"))
    assert size.drawing.count_velocity() == pytest.approx(real, rel=0.1)


@pytest.mark.parametrize("case", ONE_PER_NETWORK, indirect=True)
def test_checkpointing_keeps_inputs_of_blocks_and_the_largest_block(case: Case) -> None:
    policy, size = (
        case.load(gradient_checkpointing=Switch.true),
        model_size(case.model, pictures=case.tiny.pictures),
    )
    assert size is not None
    real, planned = count(case, policy), size.cost
    assert real.kept < planned.kept_checkpointed < planned.kept
    # A UNet computes neither its samplers nor its projections around blocks again.
    rel = 0.3 if case.network == "unet" else 0.15
    assert (planned.forward + planned.backward) == pytest.approx(real.backward, rel=rel)


@pytest.mark.parametrize("case", [name for name in ONE_PER_NETWORK if name in TRANSFORMERS], indirect=True)
def test_equal_blocks_cost_as_much_as_each_of_them(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(case.model.path, tmp_path / "deep", ignore=shutil.ignore_patterns("*.safetensors"))
    file = tmp_path / "deep" / case.network / "config.json"
    config = json.loads(file.read_text())
    depths = config.keys() & {"num_layers", "num_single_layers", "n_layers"}
    file.write_text(json.dumps({**config, **dict.fromkeys(depths, 3)}))
    size = model_size(replace(case.model, path=str(file.parent.parent)))
    assert size is not None
    few, drawn = size.cost, size.drawing.count_velocity()
    monkeypatch.setattr(cost, "_kind", id)  # no two blocks are equal
    assert size.count_cost() == few
    assert size.drawing.count_velocity.__wrapped__() == drawn
