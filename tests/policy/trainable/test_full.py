"""All weights trained: three transformers that start as one, and the files of them that plain diffusers reads."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from marble_cli.checkpoint import store
from marble_cli.checkpoint.export import export, transformer_config
from marble_cli.checkpoint.formats import ExportFormat
from marble_cli.config.compose import dump
from marble_cli.config.schema import ModelConfig, Precision, RunConfig, Train
from marble_cli.errors import CheckpointError, RequestError
from marble_cli.evaluate.evaluate import evaluate
from marble_cli.evaluate.generate import generate
from marble_cli.evaluate.target import resolve_target
from marble_cli.policy.load import load_policy
from marble_cli.policy.size import model_size
from marble_cli.run.build import build_optimizer
from marble_cli.run.state import fresh, pack
from marble_cli.seeds import noise
from tests.policy.trainable.test_switches import COMPILER, QUIET

PROMPTS = ["a red cup", "two boats"]
TRAINED = Path("transformer") / store.WEIGHTS["full"]

# In the last block the text's queries lead nowhere.
NOWHERE = {
    f"transformer_blocks.1.attn.{name}"
    for name in ("add_q_proj.weight", "add_q_proj.bias", "norm_added_q.weight")
}

Inputs = tuple[Tensor, Tensor, Any]


@pytest.fixture(scope="module")
def full(model: ModelConfig) -> ModelConfig:
    return replace(model, train=Train.full)


@pytest.fixture
def policy(full: ModelConfig) -> Any:
    return load_policy(full, seed=0)


@pytest.fixture
def inputs(policy: Any) -> Inputs:
    xt = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    return xt, torch.tensor([0.3, 0.9]), policy.encode(PROMPTS)


@pytest.fixture(scope="module")
def plain(pipeline_folder: Path) -> Any:
    """The transformer as diffusers itself loads it."""
    return SD3Transformer2DModel.from_pretrained(
        pipeline_folder, subfolder="transformer", local_files_only=True
    )


def nudge(policy: Any, scale: float = 0.02, seed: int = 0) -> None:
    """Move trained and behaviour weights, each in its own way."""
    draw = torch.Generator().manual_seed(seed)
    for adapter in ("behaviour", "trained"):
        for parameter in policy.parameters(adapter).values():
            parameter.data.add_(scale * torch.randn(parameter.shape, generator=draw))


def still(policy: Any) -> set[str]:
    """Trained parameters without a gradient."""
    trained = policy.parameters("trained")
    return {name for name, p in trained.items() if p.grad is None or not p.grad.any()}


def weights(policy: Any, adapter: str) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in policy.parameters(adapter).items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@torch.no_grad()
def plain_velocity(transformer: Any, inputs: Inputs) -> Tensor:
    xt, t, embeddings = inputs
    velocity: Tensor = transformer(
        hidden_states=xt, timestep=t * 1000, encoder_hidden_states=embeddings.tensors["tokens"],
        pooled_projections=embeddings.tensors["pooled"], return_dict=False,
    )[0]  # fmt: skip
    return velocity


def test_at_the_start_all_three_are_the_plain_transformer(policy: Any, inputs: Inputs, plain: Any) -> None:
    expected = plain_velocity(plain, inputs)
    for adapter in ("trained", None, "behaviour"):
        assert torch.equal(policy.velocity(*inputs, adapter).detach(), expected)
    parameters = {name: p.detach() for name, p in plain.named_parameters()}
    assert same(weights(policy, "trained"), parameters)
    assert same(weights(policy, "behaviour"), parameters)


@pytest.mark.parametrize("before", ["trained", "behaviour", None])
def test_gradients_reach_the_trained_weights_alone(policy: Any, inputs: Inputs, before: Any) -> None:
    assert policy.velocity(*inputs, before).requires_grad == (before == "trained")
    policy.velocity(*inputs, "trained").square().mean().backward()
    assert still(policy) == NOWHERE
    for frozen in (policy.transformer.parameters(), policy.parameters("behaviour").values()):
        assert all(p.grad is None and not p.requires_grad for p in frozen)


def test_they_move_apart_and_act_in_any_order(policy: Any, inputs: Inputs, plain: Any) -> None:
    nudge(policy)
    first = {adapter: policy.velocity(*inputs, adapter) for adapter in ("trained", None, "behaviour")}
    assert not torch.allclose(first["trained"], first["behaviour"])
    assert torch.equal(first[None], plain_velocity(plain, inputs))
    for adapter in ("behaviour", "trained", None, "trained", "behaviour", None, None, "behaviour"):
        assert torch.equal(policy.velocity(*inputs, adapter), first[adapter])


def test_swapped_weights_act_and_go_without_a_trace(policy: Any, inputs: Inputs) -> None:
    nudge(policy)
    kept, velocity = weights(policy, "trained"), policy.velocity(*inputs, "trained")
    with suppress(ZeroDivisionError), policy.swapped(weights(policy, "behaviour")):
        assert torch.equal(policy.velocity(*inputs, "trained"), policy.velocity(*inputs, "behaviour"))
        raise ZeroDivisionError
    assert same(weights(policy, "trained"), kept)
    assert torch.equal(policy.velocity(*inputs, "trained"), velocity)


def test_a_state_is_loaded_into_both_bit_for_bit(policy: Any, full: ModelConfig, plain: Any) -> None:
    nudge(policy)
    state = policy.trained_state()
    assert state.keys() == plain.state_dict().keys()
    assert {value.dtype for value in state.values()} == {torch.float32}
    later, before = load_policy(full, seed=9), load_policy(full, seed=9)
    before.parameters("behaviour")
    for other in (later, before):
        other.load_trained(state)
        assert same(other.trained_state(), state)
        assert same(weights(other, "trained"), weights(policy, "trained"))
        assert same(weights(other, "behaviour"), weights(policy, "trained"))
    kept = {key: value.clone() for key, value in state.items()}
    nudge(policy)
    assert same(state, kept)


def test_a_state_of_another_shape_is_refused(policy: Any, model: ModelConfig) -> None:
    kept = policy.trained_state()
    wider = {**kept, "proj_out.bias": torch.zeros(99)}
    for state in (wider, load_policy(model, seed=0).trained_state()):
        with pytest.raises(CheckpointError, match=r"does not fit this model: .* model\.train=full"):
            policy.load_trained(state)
    assert same(policy.trained_state(), kept)


def test_copies_are_made_when_they_are_needed(policy: Any, inputs: Inputs) -> None:
    made = policy.trainable.transformers
    with torch.no_grad():
        policy.velocity(*inputs, None)
        assert made.keys() == {None}
        policy.load_trained(policy.trained_state())
        policy.velocity(*inputs, "trained")
    assert made.keys() == {None, "trained"}


def test_half_precision_trains_float32_weights(policy: Any, full: ModelConfig, inputs: Inputs) -> None:
    half = load_policy(replace(full, precision=Precision.bf16), seed=0)
    assert {p.dtype for p in half.transformer.parameters()} == {torch.bfloat16}
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


@COMPILER
@QUIET
def test_every_copy_is_compiled(full: ModelConfig) -> None:
    compiled: Any = load_policy(replace(full, compile=True), seed=0)
    for adapter in (None, "behaviour", "trained"):
        blocks = compiled.trainable.transformer(adapter).transformer_blocks
        assert all(block._compiled_call_impl is not None for block in blocks)


def test_checkpointing_acts_on_every_copy_and_changes_no_gradient(
    policy: Any, full: ModelConfig, inputs: Inputs
) -> None:
    other: Any = load_policy(replace(full, gradient_checkpointing=True), seed=0)
    assert all(other.trainable.transformer(a).gradient_checkpointing for a in (None, "behaviour", "trained"))
    for one in (policy, other):
        one.velocity(*inputs, "trained").square().mean().backward()
    for name, parameter in policy.parameters("trained").items():
        if name not in NOWHERE:
            torch.testing.assert_close(
                other.parameters("trained")[name].grad, parameter.grad, rtol=1e-4, atol=1e-6
            )


@pytest.mark.parametrize("precision", list(Precision))
def test_sizes_are_the_real_ones(full: ModelConfig, precision: Precision) -> None:
    chosen = replace(full, precision=precision)
    size, policy = model_size(chosen), load_policy(chosen, 0)
    assert size is not None
    assert size.trained == size.transformer == sum(p.numel() for p in policy.parameters("trained").values())
    lora = model_size(replace(chosen, train=Train.lora))
    assert lora == replace(size, trained=lora.trained)  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def run(run_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a checkpoint whose trained, average and behaviour weights all differ."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    config = run_config(
        "model.train=full", "rollout.solver=euler", "model.precision=fp32", f"run.dir={folder}"
    )
    policy: Any = load_policy(config.model, 0)
    nudge(policy)
    progress = fresh(policy)
    progress.step = 1
    nudge(policy, seed=1)
    store.save(folder, *pack(policy, build_optimizer(config, policy), progress), keep_last=1, best=False)
    (folder / "config.yaml").write_text(dump(config))
    return folder


def test_a_checkpoint_holds_what_diffusers_names_so(run: Path, plain: Any) -> None:
    folder = run / "checkpoints" / "step-00000001"
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.safetensors"))
    assert names == [
        "behaviour.safetensors",
        f"ema/{store.WEIGHTS['full']}",
        "optimizer.safetensors",
        str(TRAINED),
    ]
    trained, ema = load_file(folder / TRAINED), load_file(folder / "ema" / store.WEIGHTS["full"])
    assert trained.keys() == ema.keys() == plain.state_dict().keys()
    assert not any(torch.equal(trained[name], ema[name]) for name, _ in plain.named_parameters())
    assert load_file(folder / "behaviour.safetensors").keys() == dict(plain.named_parameters()).keys()
    origin = json.loads((folder / "state.json").read_text())["info"]["origin"]
    assert origin["train"] == "full"
    assert "rank" not in origin
    assert str(run.parent) not in json.dumps(origin["transformer"])


def test_an_exported_transformer_draws_the_same_picture_in_plain_diffusers(
    run: Path, pipeline_folder: Path, tmp_path: Path
) -> None:
    (picture,) = generate(str(run), ["a red cup"], tmp_path / "pictures", seed=7)
    file = export(str(run), tmp_path / "exported")
    assert file == tmp_path / "exported" / TRAINED
    transformer = SD3Transformer2DModel.from_pretrained(
        tmp_path / "exported", subfolder="transformer", local_files_only=True
    )
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        pipeline_folder, text_encoder_3=None, tokenizer_3=None, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    latents = noise(7, "generate", 0, [0], (4, 4, 4))
    arguments: dict[str, Any] = {
        "num_inference_steps": 3,
        "guidance_scale": 1.0,
        "height": 16,
        "width": 16,
        "max_sequence_length": 0,
    }
    base = pipeline("a red cup", latents=latents, output_type="pt", **arguments).images[0]
    pipeline.transformer = transformer
    image = pipeline("a red cup", latents=latents, output_type="pt", **arguments).images[0]
    drawn = torch.from_numpy(np.asarray(Image.open(picture)).copy()).permute(2, 0, 1)
    assert (drawn - 255 * image).abs().max() < 0.51
    assert (drawn - 255 * base).abs().max() > 5


def test_an_export_overwrites_nothing_and_needs_a_configuration(run: Path, tmp_path: Path) -> None:
    export(str(run), tmp_path)
    with pytest.raises(RequestError, match="exists and is not overwritten"):
        export(str(run), tmp_path)
    for origin in (None, [], {}, {"transformer": []}, {"transformer": {"_class_name": "../x"}}):
        with pytest.raises(CheckpointError, match="step-1 is damaged: its transformer's configuration"):
            transformer_config({"origin": origin}, Path("step-1"))


@pytest.mark.parametrize("form", [ExportFormat.peft, ExportFormat.comfyui])
def test_formats_of_loras_are_refused(run: Path, tmp_path: Path, form: ExportFormat) -> None:
    said = f"--format {form.value}: .*holds a whole transformer.* Expected --format diffusers"
    with pytest.raises(RequestError, match=said) as error:
        export(str(run), tmp_path / "exported", form)
    assert error.value.exit_code == 2
    assert not (tmp_path / "exported").exists()


def test_it_is_judged_against_the_frozen_model(run: Path, full: ModelConfig) -> None:
    report = evaluate(str(run), "base", ["trainer.eval_prompts=1"], None)
    alone = {r.name: r.mean for r in evaluate("base", str(run), ["trainer.eval_prompts=1"], None).rewards}
    for result in report.rewards:
        assert result.difference != 0.0
        assert result.reference == alone[result.name]
    policy = load_policy(full, 0)
    resolve_target(str(run)).put_into(policy)
    ema = load_file(run / "checkpoints" / "step-00000001" / "ema" / store.WEIGHTS["full"])
    assert same(policy.trained_state(), ema)


@pytest.mark.parametrize(
    ("of", "for_", "said"),
    [
        ("full", "lora", "holds a whole transformer, and model.train=lora needs a LoRA"),
        ("lora", "full", "holds a LoRA, and model.train=full needs a whole transformer"),
    ],
)
def test_one_kind_is_refused_where_the_other_is_trained(
    run_config: Callable[..., RunConfig], tmp_path: Path, of: str, for_: str, said: str
) -> None:
    """By what the folder's manifest lists, whatever is said in it."""
    policy: Any = load_policy(run_config(f"model.train={of}").model, 0)
    state, trained, ema = pack(policy, build_optimizer(run_config(), policy), fresh(policy))
    for info in (state.info, {}):
        store.save(tmp_path, replace(state, info=info), trained, ema, keep_last=1, best=False)
        other = load_policy(run_config(f"model.train={for_}").model, 0)
        with pytest.raises(CheckpointError, match=f"{said}. Expected model.train={of}"):
            resolve_target(str(tmp_path)).put_into(other)
