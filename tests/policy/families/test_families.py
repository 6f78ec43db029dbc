"""Every family against the plain diffusers pipeline of its class, through one battery."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from marble_cli.checkpoint import store
from marble_cli.checkpoint.export import export
from marble_cli.config.schema import Model, OdeSolver, Precision, RunConfig
from marble_cli.errors import ConfigError, RequestError
from marble_cli.policy.base import Adapter
from marble_cli.policy.load import load_policy
from marble_cli.policy.size import model_size
from marble_cli.randomness import noise
from marble_cli.rollout.sampler import make_scheduler, sample, sampling_times
from marble_cli.trainer.mixer import Mixer
from marble_cli.trainer.run import train
from tests.policy.families.pipelines import TINY, Tiny

PROMPTS = ["a red cup", "two boats and a very long sign", "a cat"]
STEPS = 3


@dataclass(frozen=True)
class Case:
    """One family: its tiny pipeline in a folder, loaded plainly and as a policy with random adapters."""

    name: str
    tiny: Tiny
    overrides: tuple[str, ...]
    model: Model
    plain: Any
    policy: Any


@pytest.fixture(scope="module", params=list(TINY))
def case(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    run_config: Callable[..., RunConfig],
    randomise: Callable[..., None],
) -> Case:
    tiny = TINY[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tiny.make().save_pretrained(folder)
    # A choice of conf/model, with its LoRA targets; what `run_config` sets for the SD3 of the other tests is put back.
    chosen = run_config_of(request.param)
    overrides = (
        f"model={request.param}", f"model.path={folder}", f"model.resolution={tiny.resolution}", "model.precision=fp32",
        f"model.max_sequence_length={tiny.max_sequence_length}", f"model.lora.target_modules={chosen}", "rollout.solver=euler",
        *tiny.overrides,
    )  # fmt: skip
    model = run_config(*overrides).model
    policy = load_policy(model, seed=0)
    randomise(policy)
    return Case(request.param, tiny, overrides, model, load_plain(folder), policy)


def run_config_of(name: str) -> str:
    """The LoRA targets of a choice of conf/model, as an override takes them."""
    from marble_cli.config.compose import compose

    targets = compose([f"model={name}", "~preset", "data.root=.", "run.dir=unused"]).model.lora.target_modules
    return f"[{','.join(targets)}]"


def load_plain(folder: str | Path) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def start(case: Case) -> Tensor:
    return noise(0, "test", 0, list(range(len(PROMPTS))), case.policy.latent_shape)


@dataclass(frozen=True)
class Run:
    """A run of a plain pipeline: its times [n + 1], latents [n + 1, B, C, H, W] and images [B, 3, H, W], 0 to 1."""

    times: Tensor
    latents: Tensor
    images: Tensor


def plain_run(case: Case, pipeline: Any) -> Run:
    """Euler steps from `start`; Sana's own scheduler gives way to one with the same shift."""
    if case.name == "sana":
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    begin, side = start(case), case.tiny.resolution
    shape = begin.shape
    packed = pipeline._pack_latents(begin, *shape) if case.tiny.packed else begin
    seen = [packed]

    def keep(_: Any, step: int, t: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(state["latents"])
        return {}

    images = pipeline(
        prompt=list(PROMPTS), num_inference_steps=STEPS, height=side, width=side, latents=packed, output_type="pt",
        callback_on_step_end=keep, **case.tiny.arguments,
    ).images  # fmt: skip
    if case.tiny.packed:
        seen = [pipeline._unpack_latents(x, side, side, pipeline.vae_scale_factor).reshape(shape) for x in seen]
    return Run(pipeline.scheduler.sigmas, torch.stack(seen), images)


@torch.no_grad()
def own_images(case: Case, policy: Any, adapter: Adapter, solver: OdeSolver = OdeSolver.euler) -> Tensor:
    scheduler = make_scheduler(
        policy.scheduler_config(), solver, STEPS, policy.tokens, even=policy.even_times
    )
    embeddings = policy.encode(PROMPTS)
    x0 = sample(lambda xt, t: policy.velocity(xt, t, embeddings, adapter), start(case), scheduler)
    return policy.decode(x0)


def assert_same_images(got: Tensor, plain: Tensor) -> None:
    """uint8 against 0 to 1: no further apart than rounding to whole numbers."""
    assert got.float().std() > 5
    assert got[0].ne(got[1]).any()
    assert (got - plain * 255).abs().max() < 0.51


def plain_prompt(case: Case, prompt: str) -> Tensor:
    """Tokens [l, D] that the plain pipeline makes of one prompt, without padding where it masks it."""
    pipeline, length = case.plain, case.tiny.max_sequence_length
    match case.name:
        case "sd3":
            return pipeline.encode_prompt(prompt, None, None, max_sequence_length=length)[0][0]
        case "flux":
            return pipeline.encode_prompt(prompt, None, max_sequence_length=length)[0][0]
        case "qwen_image":
            return pipeline.encode_prompt(prompt, max_sequence_length=length)[0][0]
        case "sana":
            from inspect import signature

            instruction = signature(pipeline.__call__).parameters["complex_human_instruction"].default
            tokens, mask, *_ = pipeline.encode_prompt(
                prompt, max_sequence_length=length, complex_human_instruction=instruction
            )
            return tokens[mask.bool()]
        case _:
            return pipeline.encode_prompt(prompt, max_sequence_length=length)[0][0]


@torch.no_grad()
def test_embeddings_are_the_pipelines_own_whatever_stands_beside_them(case: Case) -> None:
    together = case.policy.encode(PROMPTS)
    other = case.policy.encode([PROMPTS[1]])
    assert {name: t.shape[1:] for name, t in together.tensors.items()} == {
        name: t.shape[1:] for name, t in other.tensors.items()
    }
    for row, prompt in enumerate(PROMPTS):
        expected = plain_prompt(case, prompt)
        mask = together.tensors.get("mask")
        length = len(expected)
        tokens = together.tensors["tokens"][row]
        torch.testing.assert_close(tokens[:length], expected, rtol=1e-5, atol=1e-5)
        if mask is None:
            assert length == len(tokens)
        else:
            assert length < len(tokens) == case.tiny.max_sequence_length
            assert mask[row].tolist() == [place < length for place in range(len(tokens))]
        pooled = together.tensors.get("pooled")
        if pooled is not None:
            alone = case.plain.encode_prompt(prompt, *[None] * (2 if case.name == "sd3" else 1))
            torch.testing.assert_close(pooled[row], alone[2 if case.name == "sd3" else 1][0])


@torch.no_grad()
def test_times_velocities_and_pictures_are_the_pipelines_own(case: Case) -> None:
    """Each sample is taken at another of the trajectory's times, so that none can be mixed up with a neighbour's."""
    run, policy = plain_run(case, case.plain), case.policy
    scheduler = make_scheduler(
        policy.scheduler_config(), OdeSolver.euler, STEPS, policy.tokens, even=policy.even_times
    )
    assert torch.equal(sampling_times(scheduler), run.times[:-1])
    rows = torch.arange(len(PROMPTS))
    slopes = run.latents.diff(dim=0) / run.times.diff()[:, None, None, None, None]
    got = policy.velocity(run.latents[rows, rows], run.times[rows], policy.encode(PROMPTS), None)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, slopes[rows, rows], rtol=1e-4, atol=2e-5)
    assert_same_images(own_images(case, policy, None), run.images)


def test_a_shift_is_the_same_with_the_second_order_solver(case: Case) -> None:
    """t = s u / (1 + (s - 1) u) of diffusers' even u, with the shift s that the pipeline has at this resolution."""
    policy, config = case.policy, case.plain.scheduler.config
    shift = 3.0 if case.name == "sana" else config["shift"]
    if config.get("use_dynamic_shifting"):
        slope = (config["max_shift"] - config["base_shift"]) / (64 - 4)
        shift = torch.tensor(config["base_shift"] + slope * (case.tiny.tokens - 4)).exp()
    even = 1 - torch.linspace(1, 1 / 1000, STEPS + 1).flip(0)[:-1]
    scheduler = make_scheduler(policy.scheduler_config(), OdeSolver.dpm2, STEPS, policy.tokens)
    torch.testing.assert_close(sampling_times(scheduler), shift * even / (1 + (shift - 1) * even))
    second = own_images(case, policy, None, OdeSolver.dpm2)
    assert (second.float() - own_images(case, policy, None).float()).abs().mean() < 30


def test_one_backward_pass_holds_the_gradients_of_every_mixture(case: Case) -> None:
    policy, draw = case.policy, torch.Generator().manual_seed(5)
    xt, t = start(case), torch.tensor([0.3, 0.9, 0.6])
    cotangent = torch.randn(xt.shape, generator=draw)
    coefficients = torch.randn(2, len(xt), generator=draw)
    parameters = list(policy.parameters("trained").values())
    rows = torch.zeros(2, sum(p.numel() for p in parameters))
    embeddings = policy.encode(PROMPTS)
    mixer = Mixer(policy.layers(), rows)
    with mixer.watching():
        mixer.mix(policy.velocity(xt, t, embeddings, "trained"), cotangent, coefficients, retain_graph=False)
    for row, own in zip(rows, coefficients, strict=True):
        loss = (policy.velocity(xt, t, embeddings, "trained") * cotangent * own[:, None, None, None]).sum()
        parts = torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True)
        expected = torch.cat([part.flatten() for part in parts])
        assert expected.norm() > 0
        assert (row - expected).norm() < 1e-4 * expected.norm()


def test_adapters_act_on_the_layers_that_the_configuration_names(case: Case) -> None:
    adapted = {name.split(".lora_")[0] for name in case.policy.parameters("trained")}
    targets = case.model.lora.target_modules
    assert {next(t for t in targets if name.endswith(f".{t}")) for name in adapted} == set(targets)
    linear = {
        name.removesuffix(".base_layer")
        for name, module in case.policy.transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and ".attn" in name + ".attn" and "lora" not in name
    }
    attention = {name for name in linear if any(name.endswith(f".{t}") for t in targets)}
    assert adapted == attention


def test_a_run_trains_goes_on_and_is_exported_to_plain_diffusers(
    case: Case, run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    def run(folder: str, *more: str) -> Path:
        config = run_config(
            *case.overrides, f"run.dir={tmp_path / folder}", "trainer.checkpoint_every=1", "optimizer.lr=0.05",
            "rollout.group_size=2", *more,
        )  # fmt: skip
        assert train(config, resume="auto") == 0
        return tmp_path / folder

    whole = run("whole", "trainer.steps=2")
    run("parts", "trainer.steps=1")
    parts = run("parts", "trainer.steps=2")
    for kind in ("lora", "ema"):
        one, two = (f / "checkpoints/step-00000002" / kind / store.WEIGHTS for f in (whole, parts))
        assert one.read_bytes() == two.read_bytes()
    file = export(str(whole), tmp_path / "exported")
    policy = load_policy(case.model, seed=7)
    policy.load_lora(store.load(store.resolve(str(whole)))[2])
    plain = load_plain(case.model.path)
    base = plain_run(case, plain).images
    plain.load_lora_weights(file.parent)
    images = plain_run(case, plain).images
    assert_same_images(own_images(case, policy, "trained"), images)
    assert (images - base).abs().max() > 0.05


def test_half_precision_works_and_keeps_gradients_in_float32(
    case: Case, randomise: Callable[..., None]
) -> None:
    half = load_policy(replace(case.model, precision=Precision.bf16), seed=0)
    randomise(half)
    xt, t = start(case), torch.tensor([0.3, 0.9, 0.6])
    got, exact = (
        policy.velocity(xt, t, policy.encode(PROMPTS), "trained") for policy in (half, case.policy)
    )
    assert got.dtype == torch.float32
    assert (got - exact).norm() < 0.05 * exact.norm()
    got.square().mean().backward()
    gradients = [p.grad for p in half.parameters("trained").values() if p.grad is not None]
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
    assert sum(bool(g.any()) for g in gradients) >= 0.8 * len(half.layers())
    assert half.decode(xt).float().std() > 1


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
def test_sizes_are_the_real_ones(case: Case, precision: Precision) -> None:
    model = replace(case.model, precision=precision)
    policy: Any = load_policy(model, 0)
    size = model_size(model)
    assert size is not None
    adapter = sum(p.numel() for p in policy.parameters("trained").values())
    assert size.lora == adapter
    assert size.transformer == sum(p.numel() for p in policy.transformer.parameters()) - 2 * adapter
    assert size.tokens == policy.tokens == case.tiny.tokens
    own = {id(p) for a in ("trained", "behaviour") for p in policy.parameters(a).values()}
    held = {
        id(p): p.numel() * p.element_size()
        for part in (policy.pipeline.vae, policy.transformer, *policy.family.encoders)
        for p in part.parameters()
        if id(p) not in own
    }
    assert size.frozen_bytes == pytest.approx(sum(held.values()), rel=0.01)


def test_a_resolution_that_does_not_fit_is_refused(case: Case) -> None:
    model = replace(case.model, resolution=case.tiny.resolution + 2)
    for look in (model_size, lambda m: load_policy(m, 0)):
        with pytest.raises(RequestError, match=r"model\.resolution=\d+: expected a multiple of \d+"):
            look(model)
