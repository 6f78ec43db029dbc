"""Train all weights: three transformers that start as one."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from marble_cli.config.enums import Precision, Switch, Train
from marble_cli.config.schema import ModelConfig
from marble_cli.errors import CheckpointError
from marble_cli.policy.load import load_policy
from marble_cli.policy.size import model_size
from tests.policy.trainable.compiler import NEEDS_COMPILER, WITHOUT_COMPILER_WARNINGS
from tests.policy.weights import copy_weights, have_same_weights, nudge

PROMPTS = ["a red cup", "two boats"]


# In the last block the text's queries lead nowhere.
NOWHERE = {
    f"transformer_blocks.1.attn.{name}"
    for name in ("add_q_proj.weight", "add_q_proj.bias", "norm_added_q.weight")
}


Inputs = tuple[Tensor, Tensor, Any]


@pytest.fixture
def policy(full: ModelConfig) -> Any:
    return load_policy(full, seed=0)


@pytest.fixture
def inputs(policy: Any) -> Inputs:
    xt = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    return xt, torch.tensor([0.3, 0.9]), policy.encode(PROMPTS)


def still(policy: Any) -> set[str]:
    """Trained parameters without a gradient."""
    trained = policy.parameters("trained")
    return {name for name, p in trained.items() if p.grad is None or not p.grad.any()}


@torch.no_grad()
def plain_velocity(transformer: Any, inputs: Inputs) -> Tensor:
    xt, t, embeddings = inputs
    velocity: Tensor = transformer(
        hidden_states=xt,
        timestep=t * 1000,
        encoder_hidden_states=embeddings.tensors["tokens"],
        pooled_projections=embeddings.tensors["pooled"],
        return_dict=False,
    )[0]
    return velocity


def test_all_three_transformers_equal_the_plain_one_at_the_start(
    policy: Any, inputs: Inputs, plain: Any
) -> None:
    expected = plain_velocity(plain, inputs)
    for adapter in ("trained", None, "behaviour"):
        assert torch.equal(policy.velocity(*inputs, adapter).detach(), expected)
    parameters = {name: p.detach() for name, p in plain.named_parameters()}
    assert have_same_weights(copy_weights(policy, "trained"), parameters)
    assert have_same_weights(copy_weights(policy, "behaviour"), parameters)


@pytest.mark.parametrize("before", ["trained", "behaviour", None])
def test_gradients_reach_only_the_trained_weights(policy: Any, inputs: Inputs, before: Any) -> None:
    assert policy.velocity(*inputs, before).requires_grad == (before == "trained")
    policy.velocity(*inputs, "trained").square().mean().backward()
    assert still(policy) == NOWHERE
    for frozen in (policy.network.parameters(), policy.parameters("behaviour").values()):
        assert all(p.grad is None and not p.requires_grad for p in frozen)


def test_velocities_do_not_depend_on_the_order_of_switching(policy: Any, inputs: Inputs, plain: Any) -> None:
    nudge(policy)
    first = {adapter: policy.velocity(*inputs, adapter) for adapter in ("trained", None, "behaviour")}
    assert not torch.allclose(first["trained"], first["behaviour"])
    assert torch.equal(first[None], plain_velocity(plain, inputs))
    for adapter in ("behaviour", "trained", None, "trained", "behaviour", None, None, "behaviour"):
        assert torch.equal(policy.velocity(*inputs, adapter), first[adapter])


def test_swapped_weights_act_inside_the_block_and_are_restored(policy: Any, inputs: Inputs) -> None:
    nudge(policy)
    kept, velocity = copy_weights(policy, "trained"), policy.velocity(*inputs, "trained")
    with suppress(ZeroDivisionError), policy.swapped(copy_weights(policy, "behaviour")):
        assert torch.equal(policy.velocity(*inputs, "trained"), policy.velocity(*inputs, "behaviour"))
        raise ZeroDivisionError
    assert have_same_weights(copy_weights(policy, "trained"), kept)
    assert torch.equal(policy.velocity(*inputs, "trained"), velocity)


def test_loaded_state_fills_both_copies_bit_for_bit(policy: Any, full: ModelConfig, plain: Any) -> None:
    nudge(policy)
    state = policy.trained_state()
    assert state.keys() == plain.state_dict().keys()
    assert {value.dtype for value in state.values()} == {torch.float32}
    later, before = load_policy(full, seed=9), load_policy(full, seed=9)
    before.parameters("behaviour")
    for other in (later, before):
        other.load_trained(state)
        assert have_same_weights(other.trained_state(), state)
        assert have_same_weights(copy_weights(other, "trained"), copy_weights(policy, "trained"))
        assert have_same_weights(copy_weights(other, "behaviour"), copy_weights(policy, "trained"))
    kept = {key: value.clone() for key, value in state.items()}
    nudge(policy)
    assert have_same_weights(state, kept)


def test_state_of_another_shape_is_refused(policy: Any, model: ModelConfig) -> None:
    kept = policy.trained_state()
    wider = {**kept, "proj_out.bias": torch.zeros(99)}
    for state in (wider, load_policy(model, seed=0).trained_state()):
        with pytest.raises(CheckpointError, match=r"does not fit this model: .* model\.train=full"):
            policy.load_trained(state)
    assert have_same_weights(policy.trained_state(), kept)


def test_copies_are_made_at_first_use(policy: Any, inputs: Inputs) -> None:
    made = policy.trainable.networks
    with torch.no_grad():
        policy.velocity(*inputs, None)
        assert made.keys() == {None}
        policy.load_trained(policy.trained_state())
        policy.velocity(*inputs, "trained")
    assert made.keys() == {None, "trained"}


def test_half_precision_trains_float32_weights(policy: Any, full: ModelConfig, inputs: Inputs) -> None:
    half = load_policy(replace(full, precision=Precision.bf16), seed=0)
    assert {p.dtype for p in half.network.parameters()} == {torch.bfloat16}
    assert {p.dtype for a in ("trained", "behaviour") for p in half.parameters(a).values()} == {torch.float32}
    xt, t, _ = inputs
    velocities = [half.velocity(xt, t, half.encode(PROMPTS), adapter) for adapter in ("trained", None)]
    exact = policy.velocity(*inputs, "trained")
    for velocity in velocities:
        assert velocity.dtype == torch.float32
        assert (velocity - exact).norm() < 0.03 * exact.norm()
    velocities[0].square().mean().backward()
    assert still(half) == NOWHERE
    gradients = [p.grad for p in half.parameters("trained").values()]
    assert all(gradient.dtype == torch.float32 for gradient in gradients if gradient is not None)


@NEEDS_COMPILER
@WITHOUT_COMPILER_WARNINGS
def test_compile_compiles_every_copy(full: ModelConfig) -> None:
    compiled: Any = load_policy(replace(full, compile=Switch.true), seed=0)
    for adapter in (None, "behaviour", "trained"):
        blocks = compiled.trainable.network(adapter).transformer_blocks
        assert all(block._compiled_call_impl is not None for block in blocks)


def test_gradient_checkpointing_acts_on_every_copy_and_changes_no_gradient(
    policy: Any, full: ModelConfig, inputs: Inputs
) -> None:
    other: Any = load_policy(replace(full, gradient_checkpointing=Switch.true), seed=0)
    assert all(other.trainable.network(a).gradient_checkpointing for a in (None, "behaviour", "trained"))
    for one in (policy, other):
        one.velocity(*inputs, "trained").square().mean().backward()
    for name, parameter in policy.parameters("trained").items():
        if name not in NOWHERE:
            torch.testing.assert_close(
                other.parameters("trained")[name].grad, parameter.grad, rtol=1e-4, atol=1e-6
            )


@pytest.mark.parametrize("precision", list(Precision))
def test_computed_sizes_equal_those_of_the_loaded_model(full: ModelConfig, precision: Precision) -> None:
    chosen = replace(full, precision=precision)
    size, policy = model_size(chosen), load_policy(chosen, 0)
    assert size is not None
    assert size.trained == size.network == sum(p.numel() for p in policy.parameters("trained").values())
    lora = model_size(replace(chosen, train=Train.lora))
    assert lora is not None
    assert lora == replace(size, trained=lora.trained, most_kept=lora.most_kept)
