"""The SD3 policy against plain diffusers: what it loads, its three velocities and its LoRA files."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from marble_cli.checkpoint import store
from marble_cli.checkpoint.export import export
from marble_cli.config.enums import Precision
from marble_cli.config.schema import ModelConfig
from marble_cli.errors import CheckpointError
from marble_cli.policy.base import PromptEmbeddings
from marble_cli.policy.decoding import DECODED_PIXELS
from marble_cli.policy.load import load_policy
from tests.policy.weights import copy_weights, have_same_weights

PROMPTS = ["a red cup", 'a sign that says "47"']


Inputs = tuple[Tensor, Tensor, PromptEmbeddings]


@pytest.fixture
def inputs(policy: Any) -> Inputs:
    """Two noisy latents, their times and their prompts' embeddings."""
    xt = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    return xt, torch.tensor([0.3, 0.9]), policy.encode(PROMPTS)


@pytest.fixture(scope="module")
def plain(pipeline_folder: Path) -> StableDiffusion3Pipeline:
    """The pipeline as diffusers itself loads it."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        pipeline_folder, text_encoder_3=None, tokenizer_3=None, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def plain_velocity(pipeline: StableDiffusion3Pipeline, inputs: Inputs) -> Tensor:
    xt, t, embeddings = inputs
    return pipeline.transformer(
        hidden_states=xt,
        timestep=t * 1000,
        encoder_hidden_states=embeddings.tensors["tokens"],
        pooled_projections=embeddings.tensors["pooled"],
        return_dict=False,
    )[0]


def test_embeddings_equal_the_pipelines_own(policy: Any, plain: StableDiffusion3Pipeline) -> None:
    tokens, _, pooled, _ = plain.encode_prompt(
        PROMPTS, None, None, do_classifier_free_guidance=False, max_sequence_length=0
    )
    embeddings = policy.encode(PROMPTS)
    assert torch.equal(embeddings.tensors["tokens"], tokens)
    assert torch.equal(embeddings.tensors["pooled"], pooled)
    assert torch.equal(embeddings[torch.tensor([1])].tensors["tokens"], tokens[1:])


def test_frozen_velocity_equals_the_plain_transformers(
    policy: Any, inputs: Inputs, plain: StableDiffusion3Pipeline, randomise: Callable[..., None]
) -> None:
    randomise(policy)
    assert torch.equal(policy.velocity(*inputs, None), plain_velocity(plain, inputs))


def test_velocities_of_all_three_policies_agree_at_the_start(policy: Any, inputs: Inputs) -> None:
    trained, behaviour, base = (policy.velocity(*inputs, a) for a in ("trained", "behaviour", None))
    assert have_same_weights(copy_weights(policy, "trained"), copy_weights(policy, "behaviour"))
    assert all((p == 0).all() for name, p in policy.parameters("trained").items() if "lora_B" in name)
    assert all(p.std() > 0 for name, p in policy.parameters("trained").items() if "lora_A" in name)
    assert torch.equal(trained, behaviour)
    torch.testing.assert_close(trained, base, rtol=0, atol=1e-6)


def test_initial_adapters_depend_on_the_seed_alone(model: ModelConfig) -> None:
    before = torch.random.get_rng_state()
    one, again, other = (copy_weights(load_policy(model, seed), "trained") for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert have_same_weights(one, again)
    assert not have_same_weights(one, other)


def test_velocities_do_not_depend_on_the_order_of_switching(
    policy: Any, inputs: Inputs, randomise: Callable[..., None]
) -> None:
    randomise(policy)
    first = {adapter: policy.velocity(*inputs, adapter) for adapter in ("trained", None, "behaviour")}
    assert not torch.allclose(first["trained"], first["behaviour"])
    assert not torch.allclose(first["trained"], first[None])
    for adapter in ("behaviour", "trained", None, "trained", "behaviour", None, None, "behaviour"):
        assert torch.equal(policy.velocity(*inputs, adapter), first[adapter])


@pytest.mark.parametrize("before", ["trained", "behaviour", None])
def test_gradients_reach_only_the_trained_adapter(
    policy: Any, inputs: Inputs, randomise: Callable[..., None], before: Any
) -> None:
    randomise(policy)
    assert policy.velocity(*inputs, before).requires_grad == (before == "trained")
    policy.velocity(*inputs, "trained").square().mean().backward()
    trained = policy.parameters("trained")
    assert all(p.grad is not None and p.grad.any() for p in trained.values())
    own = {id(p) for p in trained.values()}
    assert all(p.grad is None for p in policy.network.parameters() if id(p) not in own)
    assert not any(p.requires_grad for p in policy.network.parameters() if id(p) not in own)


def test_swapped_weights_act_inside_the_block_and_are_restored(
    policy: Any, inputs: Inputs, randomise: Callable[..., None]
) -> None:
    randomise(policy)
    kept, velocity = copy_weights(policy, "trained"), policy.velocity(*inputs, "trained")
    with suppress(ZeroDivisionError), policy.swapped(copy_weights(policy, "behaviour")):
        torch.testing.assert_close(policy.velocity(*inputs, "trained"), policy.velocity(*inputs, "behaviour"))
        raise ZeroDivisionError
    assert have_same_weights(copy_weights(policy, "trained"), kept)
    assert torch.equal(policy.velocity(*inputs, "trained"), velocity)


def test_loaded_lora_fills_both_adapters_bit_for_bit(
    policy: Any, model: ModelConfig, randomise: Callable[..., None]
) -> None:
    randomise(policy)
    state = policy.trained_state()
    other = load_policy(model, seed=9)
    other.load_trained(state)
    assert have_same_weights(other.trained_state(), state)
    assert have_same_weights(copy_weights(other, "trained"), copy_weights(policy, "trained"))
    assert have_same_weights(copy_weights(other, "behaviour"), copy_weights(policy, "trained"))


def test_trained_state_is_a_copy(policy: Any, randomise: Callable[..., None]) -> None:
    state = policy.trained_state()
    kept = {key: value.clone() for key, value in state.items()}
    randomise(policy)
    assert have_same_weights(state, kept)


def test_lora_of_another_shape_is_refused(policy: Any, model: ModelConfig) -> None:
    wider = load_policy(replace(model, lora=replace(model.lora, rank=3)), seed=0)
    fewer = load_policy(replace(model, lora=replace(model.lora, target_modules=["to_q"])), seed=0)
    kept = policy.trained_state()
    for other in (wider, fewer):
        with pytest.raises(CheckpointError, match=r"does not fit this model: transformer\."):
            policy.load_trained(other.trained_state())
    assert have_same_weights(policy.trained_state(), kept)


def test_exported_lora_has_the_same_velocity_in_diffusers(
    policy: Any, inputs: Inputs, pipeline_folder: Path, tmp_path: Path, randomise: Callable[..., None]
) -> None:
    randomise(policy)
    settings = policy.model.lora
    state = store.TrainerState(1, {}, {}, scale=settings.alpha / settings.rank)
    assert state.scale != 1
    lora = policy.trained_state()
    with policy.swapped(copy_weights(policy, "behaviour")):
        ema = policy.trained_state()
    checkpoint = store.save(tmp_path, state, lora, ema, keep_last=1, best=False)
    export(str(tmp_path), tmp_path / "exported")
    for folder, adapter in ((checkpoint / "lora", "trained"), (tmp_path / "exported", "behaviour")):
        pipeline = StableDiffusion3Pipeline.from_pretrained(
            pipeline_folder, text_encoder_3=None, tokenizer_3=None
        )
        pipeline.load_lora_weights(folder)
        torch.testing.assert_close(
            plain_velocity(pipeline, inputs), policy.velocity(*inputs, adapter).detach(), rtol=1e-5, atol=1e-6
        )


def test_pipeline_saved_without_t5_has_zeros_for_its_tokens_as_in_diffusers(
    model: ModelConfig, plain: StableDiffusion3Pipeline
) -> None:
    """`model=sd3` asks for tokens of T5 that the folder does not have."""
    policy = load_policy(replace(model, max_sequence_length=20), 0)
    embeddings = policy.encode(PROMPTS)
    tokens, _, pooled, _ = plain.encode_prompt(PROMPTS, None, None, max_sequence_length=20)
    assert torch.equal(embeddings.tensors["tokens"], tokens)
    assert torch.equal(embeddings.tensors["pooled"], pooled)
    assert not tokens[:, -20:].any()


def test_decoded_pictures_equal_the_pipelines_own(policy: Any, plain: StableDiffusion3Pipeline) -> None:
    latents = torch.randn(3, *policy.latent_shape, generator=torch.Generator().manual_seed(1))
    scaled = latents / plain.vae.config.scaling_factor + plain.vae.config.shift_factor
    with torch.no_grad():
        images = plain.image_processor.postprocess(plain.vae.decode(scaled).sample, output_type="pt")
    got, finite = policy.decode(latents)
    assert got.dtype == torch.uint8
    assert got.float().std() > 1
    assert torch.equal(got, (images * 255).round().to(torch.uint8))
    assert finite.all()


@pytest.mark.parametrize(("images", "batches"), [(9, [5, 4]), (8, [8]), (17, [6, 6, 5]), (1, [1])])
def test_decoding_uses_batches_of_even_size(
    policy: Any, monkeypatch: pytest.MonkeyPatch, images: int, batches: list[int]
) -> None:
    """Of at most eight here; a last batch of one would take as long as some."""
    monkeypatch.setitem(DECODED_PIXELS, "cpu", 8 * 16 * 16)
    sizes, decode = [], policy.family.decode

    def counted(x0: Tensor) -> Tensor:
        sizes.append(len(x0))
        return decode(x0)

    latents = torch.randn(images, *policy.latent_shape, generator=torch.Generator().manual_seed(4))
    one_by_one = torch.cat([policy.decode(latent[None])[0] for latent in latents])
    monkeypatch.setattr(policy.family, "decode", counted)
    assert (policy.decode(latents)[0].int() - one_by_one.int()).abs().max() <= 1
    assert sizes == batches


def test_half_precision_keeps_adapters_and_velocities_in_float32(
    model: ModelConfig, inputs: Inputs, policy: Any, randomise: Callable[..., None]
) -> None:
    half = load_policy(replace(model, precision=Precision.bf16), seed=0)
    randomise(half)
    randomise(policy)
    xt, t, _ = inputs
    velocity = half.velocity(xt, t, half.encode(PROMPTS), "trained")
    assert velocity.dtype == torch.float32
    assert {p.dtype for p in half.parameters("trained").values()} == {torch.float32}
    torch.testing.assert_close(velocity, policy.velocity(*inputs, "trained"), rtol=0.1, atol=0.1)
    velocity.square().mean().backward()
    assert all(p.grad.dtype == torch.float32 for p in half.parameters("trained").values())
