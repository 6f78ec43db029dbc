"""Every family against the plain diffusers pipeline of its class, through one battery."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from marble_cli.checkpoint import store
from marble_cli.checkpoint.export import export
from marble_cli.checkpoint.formats import ExportFormat
from marble_cli.config.compose import compose, dump, load_resolved
from marble_cli.config.schema import ModelConfig, OdeSolver, Precision, RolloutConfig, RunConfig, Train
from marble_cli.data.prompts import Prompt
from marble_cli.errors import ConfigError, RequestError
from marble_cli.policy.base import Adapter
from marble_cli.policy.load import load_policy
from marble_cli.policy.size import model_size
from marble_cli.rollout.collect import Rollout
from marble_cli.rollout.ode import make_scheduler, sample, sampling_times
from marble_cli.run.build import build_optimizer
from marble_cli.run.state import fresh, pack
from marble_cli.run.train import train
from marble_cli.seeds import noise
from marble_cli.step.per_sample import PerSampleGradients
from tests.policy.families.pipelines import TINY, Tiny

PROMPTS = ["a red cup", "two boats and a very long sign", "a cat"]
NEGATIVES = ["blurred", "", "grey, dull and with a frame"]
TIMES = torch.tensor([0.25, 0.5, 1.0])
STEPS = 3


@dataclass(frozen=True)
class Case:
    """One family: its tiny pipeline in a folder, loaded plainly and as a policy with random adapters."""

    tiny: Tiny
    overrides: tuple[str, ...]
    model: ModelConfig
    plain: Any
    policy: Any

    def start(self) -> Tensor:
        """Noise [3, C, H, W] of a rollout."""
        return noise(0, "test", 0, list(range(len(PROMPTS))), self.policy.latent_shape)

    def scheduler(self, solver: OdeSolver) -> Any:
        policy = self.policy
        return make_scheduler(policy.scheduler_config(), solver, STEPS, policy.tokens, even=policy.even_times)

    @torch.no_grad()
    def images(self, policy: Any, adapter: Adapter, solver: OdeSolver = OdeSolver.euler) -> Tensor:
        """As a rollout draws them, uint8 [3, 3, H, W]."""
        embeddings = policy.encode(PROMPTS)
        x0 = sample(
            lambda xt, t: policy.velocity(xt, t, embeddings, adapter), self.start(), self.scheduler(solver)
        )
        return policy.decode(x0)


def load_plain(folder: str | Path) -> Any:
    """Sana's pipeline takes the Euler solver here, with the shift of its own."""
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    if type(pipeline).__name__ == "SanaPipeline":
        pipeline.register_modules(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    return pipeline


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
    targets = compose(
        [f"model={tiny.choice}", "~preset", "data.root=.", "run.dir=unused"]
    ).model.lora.target_modules
    overrides = (
        f"model={tiny.choice}", f"model.path={folder}", f"model.resolution={tiny.resolution}", "model.precision=fp32", "model.embedding_cache=null",
        f"model.max_sequence_length={tiny.max_sequence_length}", f"model.lora.target_modules=[{','.join(targets)}]",
        *tiny.overrides,
    )  # fmt: skip
    model = run_config(*overrides).model
    policy = load_policy(model, seed=0)
    randomise(policy)
    return Case(tiny, overrides, model, load_plain(folder), policy)


@dataclass(frozen=True)
class Run:
    """A run of a plain pipeline: times [n + 1], latents [n + 1, 3, C, H, W] and images [3, 3, H, W], 0 to 1."""

    times: Tensor
    latents: Tensor
    images: Tensor


def plain_run(case: Case, pipeline: Any, **more: Any) -> Run:
    begin, side = case.start(), case.tiny.resolution
    seen = [pipeline._pack_latents(begin, *begin.shape) if case.tiny.packed else begin]

    def keep(_: Any, step: int, t: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(state["latents"])
        return {}

    images = pipeline(
        prompt=list(PROMPTS), num_inference_steps=STEPS, height=side, width=side, latents=seen[0], output_type="pt",
        callback_on_step_end=keep, **{**case.tiny.arguments, **more},
    ).images  # fmt: skip
    if case.tiny.packed:
        scale = pipeline.vae_scale_factor
        seen = [pipeline._unpack_latents(x, side, side, scale).reshape(begin.shape) for x in seen]
    return Run(pipeline.scheduler.sigmas, torch.stack(seen), images)


def assert_same_images(got: Tensor, plain: Tensor) -> None:
    """uint8 against 0 to 1: no further apart than rounding to whole numbers."""
    assert got.float().std() > 5
    assert got[0].ne(got[1]).any()
    assert (got - plain * 255).abs().max() < 0.51


def plain_prompt(case: Case, prompt: str) -> tuple[Tensor, Tensor | None]:
    """What the plain pipeline makes of one prompt: tokens [l, D], less those that it masks, and the pooled vector."""
    pipeline, length = case.plain, case.tiny.max_sequence_length
    match case.tiny.choice:
        case "sd3":
            tokens, _, pooled, _ = pipeline.encode_prompt(prompt, None, None, max_sequence_length=length)
            return tokens[0], pooled[0]
        case "flux":
            tokens, pooled, _ = pipeline.encode_prompt(prompt, max_sequence_length=length)
            return tokens[0], pooled[0]
        case "sana":
            call = inspect.signature(pipeline.__call__).parameters
            tokens, mask, *_ = pipeline.encode_prompt(
                prompt, max_sequence_length=length,
                complex_human_instruction=call["complex_human_instruction"].default,
            )  # fmt: skip
            return tokens[mask.bool()], None
        case _:
            return pipeline.encode_prompt(prompt, max_sequence_length=length)[0][0], None


@torch.no_grad()
def test_embeddings_are_the_pipelines_own_whatever_stands_beside_them(case: Case) -> None:
    together, alone = (case.policy.encode(prompts) for prompts in (PROMPTS, PROMPTS[:1]))
    for name, tensor in together.tensors.items():
        assert tensor.shape[1:] == alone.tensors[name].shape[1:]
    for row, prompt in enumerate(PROMPTS):
        expected, pooled = plain_prompt(case, prompt)
        tokens, length = together.tensors["tokens"][row], len(expected)
        torch.testing.assert_close(tokens[:length], expected, rtol=1e-5, atol=1e-5)
        assert len(together) == len(PROMPTS)
        if pooled is not None:
            torch.testing.assert_close(together.tensors["pooled"][row], pooled, rtol=1e-5, atol=1e-5)
            assert length == len(tokens)
        else:
            assert length < len(tokens) == case.tiny.max_sequence_length
            mask = together.tensors["mask"][row]
            assert mask.tolist() == [place < length for place in range(len(tokens))]


@torch.no_grad()
def test_times_velocities_and_pictures_are_the_pipelines_own(case: Case) -> None:
    """Each sample is taken at another of the trajectory's times, so that none can be mixed up with a neighbour's."""
    run, policy = plain_run(case, case.plain), case.policy
    assert torch.equal(sampling_times(case.scheduler(OdeSolver.euler)), run.times[:-1])
    rows = torch.arange(len(PROMPTS))
    slopes = run.latents.diff(dim=0) / run.times.diff()[:, None, None, None, None]
    got = policy.velocity(run.latents[rows, rows], run.times[rows], policy.encode(PROMPTS), None)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, slopes[rows, rows], rtol=1e-4, atol=2e-5)
    assert_same_images(case.images(policy, None), run.images)


class Unscored:
    """A scorer that is not asked for scores."""

    def submit(self, *_: Any) -> None: ...


def guided_latents(case: Case, policy: Any, scale: float, **bounds: float) -> Tensor:
    """As a rollout, evaluations and `marble generate` make them, in batches of two: [3, C, H, W]."""
    settings = RolloutConfig(steps=STEPS, solver=OdeSolver.euler, batch_size=2, guidance_scale=scale, **bounds)
    rollout = Rollout(policy, settings, seed=0)
    prompts = [Prompt(text, {}, "any", away) for text, away in zip(PROMPTS, NEGATIVES, strict=True)]
    rollout.prepare(prompts)
    samples = rollout.collect(
        prompts, range(3), scorer=Unscored(), adapter=None, purpose="test", step=0, advance=lambda n: None
    )  # type: ignore[arg-type]
    return samples.x0


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("scale", [2.0, 4.0])
def test_guidance_is_the_pipelines_own(case: Case, tmp_path: Path, scale: float, cached: bool) -> None:
    """A number that is copied from there draws the same pictures here."""
    policy = load_policy(replace(case.model, embedding_cache=str(tmp_path)), 0) if cached else case.policy
    name = "true_cfg_scale" if case.tiny.packed else "guidance_scale"
    run = plain_run(case, case.plain, negative_prompt=list(NEGATIVES), **{name: scale})
    ours = guided_latents(case, policy, scale)
    torch.testing.assert_close(ours, run.latents[-1], rtol=1e-5, atol=1e-5)
    assert (ours - guided_latents(case, policy, 1.0)).abs().amax(dim=(1, 2, 3)).min() > 1e-2
    assert_same_images(policy.decode(ours), run.images)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_without_guidance_negative_prompts_do_not_count(case: Case, scale: float) -> None:
    run = plain_run(case, case.plain)
    torch.testing.assert_close(
        guided_latents(case, case.policy, scale), run.latents[-1], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("case", ["z_image"], indirect=True)
@pytest.mark.parametrize("bounds", [(1.0, 1.0), (0.5, 1.0), (0.0, 0.3), (1.2, 0.6)])
def test_the_bounds_of_z_image_are_its_pipelines(case: Case, bounds: tuple[float, float]) -> None:
    names = ("cfg_normalization", "cfg_truncation")
    given = dict(zip(names, bounds, strict=True))
    run = plain_run(case, case.plain, negative_prompt=list(NEGATIVES), guidance_scale=4.0, **given)
    ours = guided_latents(case, case.policy, 4.0, **given)
    torch.testing.assert_close(ours, run.latents[-1], rtol=1e-5, atol=1e-5)
    assert (ours - guided_latents(case, case.policy, 4.0)).abs().max() > 1e-2


@torch.no_grad()
def test_a_sample_moves_as_it_would_alone(case: Case) -> None:
    """Alone, its prompt is not padded at all."""
    policy, xt = case.policy, case.start()
    together = policy.velocity(xt, TIMES, policy.encode(PROMPTS), "trained")
    for i, prompt in enumerate(PROMPTS):
        alone = policy.velocity(xt[i : i + 1], TIMES[i : i + 1], policy.encode([prompt]), "trained")
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)


def test_the_second_order_solver_has_the_pipelines_shift(case: Case) -> None:
    """t = s u / (1 + (s - 1) u) of diffusers' even u, with the shift s of the pipeline at this resolution."""
    config = case.plain.scheduler.config
    shift = torch.tensor(config.shift)
    if config.use_dynamic_shifting:
        slope = (config.max_shift - config.base_shift) / (64 - 4)
        shift = torch.tensor(config.base_shift + slope * (case.tiny.tokens - 4)).exp()
    even = 1 - torch.linspace(1, 1 / 1000, STEPS + 1).flip(0)[:-1]
    times = sampling_times(case.scheduler(OdeSolver.dpm2))
    torch.testing.assert_close(times, shift * even / (1 + (shift - 1) * even))
    if case.tiny.choice == "sana":
        own = DPMSolverMultistepScheduler.from_pretrained(case.model.path, subfolder="scheduler")
        own.set_timesteps(STEPS)
        assert torch.equal(times, own.sigmas[:-1])


def test_cached_embeddings_are_the_same(case: Case, tmp_path: Path) -> None:
    cached = load_policy(replace(case.model, embedding_cache=str(tmp_path)), 0)
    alone = [case.policy.encode([prompt]) for prompt in PROMPTS]
    for name, tensor in cached.encode(PROMPTS).tensors.items():
        assert torch.equal(tensor, torch.cat([one.tensors[name] for one in alone]))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_backward_pass_holds_the_gradients_of_every_mixture(
    case: Case, checkpointing: bool, randomise: Callable[..., None]
) -> None:
    policy, draw, xt = case.policy, torch.Generator().manual_seed(5), case.start()
    watched = policy
    if checkpointing:
        watched = load_policy(replace(case.model, gradient_checkpointing=True), 0)
        randomise(watched)
    cotangent = torch.randn(xt.shape, generator=draw)
    coefficients = torch.randn(2, len(xt), generator=draw)
    parameters = list(policy.parameters("trained").values())
    rows = torch.zeros(2, sum(p.numel() for p in parameters))
    at = (xt, TIMES, policy.encode(PROMPTS), "trained")
    mixer = PerSampleGradients(watched.layers(), rows)
    with mixer.watching():
        mixer.mix(watched.velocity(*at), cotangent, coefficients, retain_graph=False)
    for row, own in zip(rows, coefficients, strict=True):
        loss = (policy.velocity(*at) * cotangent * own[:, None, None, None]).sum()
        parts = torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True)
        expected = torch.cat([part.flatten() for part in parts])
        assert (row - expected).norm() < 1e-4 * expected.norm()


def test_every_attention_projection_is_adapted(case: Case) -> None:
    adapted = {name.split(".lora_")[0] for name in case.policy.parameters("trained")}
    assert adapted == {
        name
        for name, module in case.plain.transformer.named_modules()
        if isinstance(module, nn.Linear)
        and any(part.startswith(("to_", "add_")) for part in name.split(".")[-2:])
    }


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_run_trains_goes_on_and_is_exported_to_plain_diffusers(
    case: Case, run_config: Callable[..., RunConfig], tmp_path: Path, kind: str
) -> None:
    rate = 0.1 if kind == "lora" else 0.01

    def run(folder: str, steps: int) -> Path:
        config = run_config(
            *case.overrides, f"run.dir={tmp_path / folder}", f"trainer.steps={steps}", "trainer.checkpoint_every=1",
            f"optimizer.lr={rate}", f"model.train={kind}", "rollout.group_size=2", "trainer.ema.decay=0.1",
        )  # fmt: skip
        assert train(config, resume="auto") == 0
        return tmp_path / folder

    whole = run("whole", 2)
    run("parts", 1)
    parts = run("parts", 2)
    for name in store.weight_files(kind):
        one, two = (f / "checkpoints/step-00000002" / name for f in (whole, parts))
        assert one.read_bytes() == two.read_bytes()
    file = export(str(whole), tmp_path / "exported")
    policy = load_policy(replace(case.model, train=Train(kind)), seed=7)
    policy.load_trained(store.load(store.resolve(str(whole)))[2])
    plain = load_plain(case.model.path)
    base = plain_run(case, plain).images
    if kind == "lora":
        plain.load_lora_weights(file.parent)
    else:
        plain.transformer = type(plain.transformer).from_pretrained(
            file.parents[1], subfolder="transformer", local_files_only=True
        )
    images = plain_run(case, plain).images
    assert_same_images(case.images(policy, "trained"), images)
    assert (images - base).abs().max() * 255 > 5


@pytest.fixture(scope="module")
def trained(
    case: Case,
    run_config: Callable[..., RunConfig],
    randomise: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A run's folder with one checkpoint of random weights; alpha / rank is 1.5."""
    folder = tmp_path_factory.mktemp("trained")
    config = run_config(*case.overrides, "model.lora.rank=2", "model.lora.alpha=3", f"run.dir={folder}")
    policy: Any = load_policy(config.model, 0)
    randomise(policy, seed=1)
    progress = fresh(policy)
    progress.step = 1
    randomise(policy, seed=2)
    store.save(folder, *pack(policy, build_optimizer(config, policy), progress), keep_last=1, best=False)
    (folder / "config.yaml").write_text(dump(config))
    return folder


@torch.no_grad()
def velocity(case: Case, transformer: nn.Module) -> Tensor:
    """By the policy's own way to call a transformer, with `transformer` in the place of its own."""
    pipeline = case.policy.pipeline
    own, pipeline.transformer = pipeline.transformer, transformer
    try:
        return case.policy.family.velocity(case.start(), TIMES, case.policy.encode(PROMPTS))
    finally:
        pipeline.transformer = own


@torch.no_grad()
def as_trained(case: Case, trained: Path) -> dict[str, Tensor]:
    """The velocities of a checkpoint's weights and their moving average, by a policy with the run's alpha."""
    policy: Any = load_policy(load_resolved(trained / "config.yaml").model, 0)
    _, *states = store.load(store.resolve(str(trained)))
    at, result = (case.start(), TIMES, policy.encode(PROMPTS)), {}
    for name, state in zip(("lora", "ema"), states, strict=True):
        policy.load_trained(state)
        result[name] = policy.velocity(*at, "trained")
        assert (result[name] - policy.velocity(*at, None)).abs().max() > 0.01
    assert (result["lora"] - result["ema"]).abs().max() > 0.01
    return result


@pytest.fixture(scope="module")
def expected(case: Case, trained: Path) -> Tensor:
    """The velocity of what is exported."""
    return as_trained(case, trained)["ema"]


def plain_transformer(case: Case) -> Any:
    return load_plain(case.model.path).transformer.eval()


def merged(case: Case, file: Path, prefix: str) -> Any:
    """A loader that knows nothing of alpha, ranks or headers: W + B @ A."""
    transformer, tensors = plain_transformer(case), load_file(file)
    weights = dict(transformer.named_parameters())
    layers = {key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")}
    assert tensors.keys() == {f"{layer}.lora_{part}.weight" for layer in layers for part in "AB"}
    for layer in layers:
        product = tensors[f"{layer}.lora_B.weight"] @ tensors[f"{layer}.lora_A.weight"]
        weights[f"{layer.removeprefix(prefix)}.weight"].data += product
    return transformer


def assert_same_velocity(case: Case, transformer: nn.Module, expected: Tensor) -> None:
    torch.testing.assert_close(velocity(case, transformer), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("header", [True, False])
def test_diffusers_plays_an_export_as_trained(
    case: Case, trained: Path, expected: Tensor, tmp_path: Path, header: bool
) -> None:
    file = export(str(trained), tmp_path)
    assert file == tmp_path / "pytorch_lora_weights.safetensors"
    assert file.read_bytes() == next(trained.glob("checkpoints/*/ema/*")).read_bytes()
    if not header:
        save_file(load_file(file), file)
    pipeline = load_plain(case.model.path)
    pipeline.load_lora_weights(tmp_path)
    assert_same_velocity(case, pipeline.transformer, expected)


def test_peft_plays_an_export_as_trained(case: Case, trained: Path, expected: Tensor, tmp_path: Path) -> None:
    file = export(str(trained), tmp_path, ExportFormat.peft)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert_same_velocity(case, PeftModel.from_pretrained(plain_transformer(case), tmp_path), expected)
    assert_same_velocity(case, merged(case, file, "base_model.model."), expected)


def test_comfyui_plays_an_export_as_trained_where_it_maps_the_model(
    case: Case, trained: Path, expected: Tensor, tmp_path: Path
) -> None:
    if case.tiny.choice == "sana":
        with pytest.raises(RequestError, match="ComfyUI's loader does not map a LoRA of Sana"):
            export(str(trained), tmp_path / "comfyui", ExportFormat.comfyui)
        assert not (tmp_path / "comfyui").exists()
        return
    file = export(str(trained), tmp_path, ExportFormat.comfyui)
    assert_same_velocity(case, merged(case, file, "transformer."), expected)


@pytest.mark.parametrize("name", ["lora", "ema"])
def test_the_files_of_a_checkpoint_act_as_trained_without_alpha(case: Case, trained: Path, name: str) -> None:
    (file,) = trained.glob(f"checkpoints/*/{name}/pytorch_lora_weights.safetensors")
    assert_same_velocity(case, merged(case, file, "transformer."), as_trained(case, trained)[name])


def test_half_precision_works_and_keeps_gradients_in_float32(
    case: Case, randomise: Callable[..., None]
) -> None:
    half = load_policy(replace(case.model, precision=Precision.bf16), seed=0)
    randomise(half)
    got, exact = (p.velocity(case.start(), TIMES, p.encode(PROMPTS), "trained") for p in (half, case.policy))
    assert got.dtype == torch.float32
    assert (got - exact).norm() < 0.05 * exact.norm()
    got.square().mean().backward()
    gradients = [p.grad for p in half.parameters("trained").values() if p.grad is not None]
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
    # In the last block the text's queries and outputs lead nowhere.
    assert sum(bool(g.any()) for g in gradients) >= 0.8 * len(half.layers())
    assert half.decode(case.start()).float().std() > 5


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
def test_sizes_are_the_real_ones(case: Case, precision: Precision) -> None:
    model = replace(case.model, precision=precision)
    policy: Any = load_policy(model, 0)
    size = model_size(model)
    assert size is not None
    adapter = sum(p.numel() for p in policy.parameters("trained").values())
    assert size.trained == adapter
    assert size.transformer == sum(p.numel() for p in policy.transformer.parameters()) - 2 * adapter
    assert size.tokens == policy.tokens == case.tiny.tokens
    own = {id(p) for a in ("trained", "behaviour") for p in policy.parameters(a).values()}

    def held(*parts: nn.Module) -> int:
        weights = {id(p): p for part in parts for p in part.parameters() if id(p) not in own}
        return sum(p.numel() * p.element_size() for p in weights.values())

    assert size.frozen_bytes == pytest.approx(held(policy.pipeline.vae, policy.transformer), rel=0.01)
    assert size.encoder_bytes == pytest.approx(held(*policy.family.encoders), rel=0.01)


def test_what_does_not_fit_the_model_is_refused(case: Case) -> None:
    uneven = replace(case.model, resolution=case.tiny.resolution + 2)
    for look in (model_size, lambda model: load_policy(model, 0)):
        with pytest.raises(RequestError, match=r"model\.resolution=\d+: expected a multiple of \d+"):
            look(uneven)
    other, said = (3.5, "3.5") if case.model.guidance is None else (None, "null")
    wrong = [(replace(case.model, guidance=other), rf"model\.guidance={said}: .*Expected")]
    if case.tiny.choice == "sana":
        wrong.append((replace(case.model, precision=Precision.fp16), "model.precision=fp16"))
    if case.tiny.choice != "sd3":
        wrong.append((replace(case.model, max_sequence_length=0), "model.max_sequence_length=0.*at least 1"))
    for model, message in wrong:
        for look in (model_size, lambda model: load_policy(model, 0)):
            with pytest.raises(ConfigError, match=message):
                look(model)


def test_prompts_are_encoded_in_parts_where_they_are_many(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy: Any = load_policy(case.model, 0)
    whole, sizes, encode = policy.encode(PROMPTS), list[int](), policy.family.encode
    monkeypatch.setattr(policy.family, "encode", lambda part: sizes.append(len(part)) or encode(part))
    monkeypatch.setattr("marble_cli.policy.pipeline.ENCODED_TOKENS", 2 * case.model.max_sequence_length + 1)
    parts = policy.encode(PROMPTS)
    assert sizes == [2, 1]
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(parts.tensors[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["z_image"], indirect=True)
def test_layers_that_do_not_keep_samples_apart_are_refused(case: Case) -> None:
    """Z-Image embeds the patches of all samples as one list."""
    lora = replace(case.model.lora, target_modules=["all_x_embedder.2-1"])
    policy: Any = load_policy(replace(case.model, lora=lora), 0)
    rows = torch.zeros(1, sum(p.numel() for p in policy.parameters("trained").values()))
    mixer, xt = PerSampleGradients(policy.layers(), rows), case.start()
    with mixer.watching():
        velocity = policy.velocity(xt, TIMES, policy.encode(PROMPTS), "trained")
        with pytest.raises(ConfigError, match="whose input has 96 rows for 3 samples"):
            mixer.mix(velocity, xt, torch.ones(1, 3), retain_graph=False)
