"""Every family draws what the plain diffusers pipeline of its class draws."""

import inspect
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor

from marble_cli.config.enums import OdeSolver
from marble_cli.config.resolution import read_resolution
from marble_cli.config.schema import RolloutConfig
from marble_cli.data.prompts import Prompt
from marble_cli.policy.decoding import DECODED_PIXELS
from marble_cli.push.loading import TRUE_CFG
from marble_cli.rollout.collect import Rollout
from marble_cli.rollout.ode import sampling_times
from marble_cli.seeds import noise
from tests.policy.families.cases import (
    NEGATIVES,
    PROMPTS,
    STEPS,
    Case,
    assert_same_images,
    plain_run,
)
from tests.policy.families.differences import beyond_rounding
from tests.policy.families.edits import seen
from tests.policy.families.pipelines import TINY


def plain_prompt(case: Case, prompt: str) -> tuple[Tensor, Tensor | None]:
    """Encode one prompt with the plain pipeline: tokens [l, D] without masked ones, and the rest of it."""
    pipeline, length = case.plain, case.tiny.max_sequence_length
    match case.tiny.choice:
        case "sd3":
            tokens, _, pooled, _ = pipeline.encode_prompt(prompt, None, None, max_sequence_length=length)
            return tokens[0], pooled[0]
        case "flux" | "flux_kontext":
            tokens, pooled, _ = pipeline.encode_prompt(prompt, max_sequence_length=length)
            return tokens[0], pooled[0]
        case "flux2_klein" | "flux2":
            tokens, _ = pipeline.encode_prompt(prompt, max_sequence_length=length)
            return tokens[0], None
        case "chroma":
            tokens, _, attended, *_ = pipeline.encode_prompt(prompt, max_sequence_length=length)
            return tokens[0], attended[0]
        case "lumina2":
            tokens, mask, *_ = pipeline.encode_prompt(prompt, max_sequence_length=length)
            return tokens[mask.bool()], None
        case "sdxl":
            tokens, _, pooled, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)
            return tokens[0], pooled[0]
        case "sd15":
            return pipeline.encode_prompt(prompt, "cpu", 1, False)[0][0], None
        case "sana":
            call = inspect.signature(pipeline.__call__).parameters
            tokens, mask, *_ = pipeline.encode_prompt(
                prompt,
                max_sequence_length=length,
                complex_human_instruction=call["complex_human_instruction"].default,
            )
            return tokens[mask.bool()], None
        case "qwen_image_edit":
            resize, given = pipeline.image_processor.resize, seen(case.pictures(prompt), 48, 32)
            shown = [resize(one, *sides) for one, sides in zip(given, ((64, 64), (96, 32)), strict=False)]
            return pipeline.encode_prompt(prompt, shown, max_sequence_length=length)[0][0], None
        case _:
            return pipeline.encode_prompt(prompt, max_sequence_length=length)[0][0], None


@torch.no_grad()
def test_embeddings_of_several_prompts_equal_the_pipelines_own(case: Case) -> None:
    together, alone = (case.encode(case.policy, prompts) for prompts in (PROMPTS, PROMPTS[:1]))
    for name, tensor in together.tensors.items():
        assert tensor.shape[1:] == alone.tensors[name].shape[1:]
    for row, prompt in enumerate(PROMPTS):
        expected, beside = plain_prompt(case, prompt)
        tokens, length = together.tensors["tokens"][row], len(expected)
        case.record("embeddings", tokens[:length] - expected)
        torch.testing.assert_close(tokens[:length], expected, rtol=1e-5, atol=1e-5)
        assert len(together) == len(PROMPTS)
        if beside is not None:
            name = "attended" if case.tiny.choice == "chroma" else "pooled"
            torch.testing.assert_close(together.tensors[name][row], beside, rtol=1e-5, atol=1e-5)
            assert length == len(tokens)
        elif "mask" in together.tensors:
            given = seen(case.pictures(prompt), 48, 32)
            own = sum(case.policy.family.picture_tokens(*picture.size) for picture in given)
            assert length < len(tokens) == case.tiny.max_sequence_length + own
            mask = together.tensors["mask"][row]
            assert mask.tolist() == [place < length for place in range(len(tokens))]


@torch.no_grad()
def test_times_velocities_and_pictures_equal_the_pipelines_own(case: Case) -> None:
    """Each sample is taken at another time of the trajectory, so that mixed-up samples would show."""
    run, policy = case.drawn, case.policy
    assert torch.equal(sampling_times(case.scheduler(OdeSolver.euler)), run.times[:-1])
    rows = torch.arange(len(PROMPTS))
    slopes = run.latents.diff(dim=0) / run.times.diff().view(-1, *[1] * (run.latents.ndim - 1))
    got = policy.velocity(run.latents[rows, rows], run.times[rows], case.encode(policy), None)
    assert got.dtype == torch.float32
    case.record("velocities", got - slopes[rows, rows])
    torch.testing.assert_close(got, slopes[rows, rows], rtol=1e-4, atol=5e-5)
    images = case.images(policy, None)
    case.record("pictures", beyond_rounding(images, run.images))
    assert_same_images(images, run.images)


class Unscored:
    """A scorer that is not asked for scores."""

    def submit(self, *_: Any, **__: Any) -> None: ...


@pytest.mark.parametrize("case", TINY, indirect=True)
def test_velocities_are_of_the_latents_size_and_not_of_the_policys_own(case: Case) -> None:
    """A step trains on latents of several sizes; each are here turned by a right angle."""
    size = read_resolution(case.tiny.resolution)
    turned = case.policy.resized(f"{size.height}x{size.width}")
    xt = noise(0, "test", 0, list(range(len(PROMPTS))), turned.latent_shape)
    at = xt, case.times, case.encode(turned)
    with torch.no_grad():
        one, other = (policy.velocity(*at, "trained") for policy in (case.policy, turned))
    assert one.shape == xt.shape != case.start().shape
    assert torch.equal(one, other)


def negatives(case: Case) -> list[str]:
    """SDXL's pipeline takes an empty one for a text if others are not; `test_sdxl.py` has it alone."""
    return [text or "dim" for text in NEGATIVES] if case.tiny.choice == "sdxl" else list(NEGATIVES)


def told(case: Case, texts: list[str]) -> dict[str, list[Any]]:
    """Negative prompts as the plain pipeline takes them: FLUX.2's takes their embeddings alone."""
    if case.tiny.choice != "flux2_klein":
        return {"negative_prompt": list(texts)}
    encoded = [case.plain.encode_prompt(text, max_sequence_length=40)[0] for text in texts]
    return {"negative_prompt_embeds": encoded}


def guided_latents(
    case: Case, policy: Any, scale: float, away: list[str] | None = None, **bounds: float
) -> Tensor:
    """As a rollout, evaluations and `marble generate` make them, in batches of two: [3, C, H, W]."""
    settings = RolloutConfig(
        steps=STEPS, solver=OdeSolver.euler, batch_size=2, guidance_scale=scale, **bounds
    )
    rollout = Rollout(policy, settings, seed=0)
    away = negatives(case) if away is None else away
    prompts = [
        Prompt(text, {}, "any", other, case.pictures(text)) for text, other in zip(PROMPTS, away, strict=True)
    ]
    rollout.prepare(prompts)
    samples = rollout.collect(
        prompts, range(3), scorer=Unscored(), adapter=None, purpose="test", step=0, advance=lambda n: None
    )  # type: ignore[arg-type]
    return torch.stack([*samples.x0])


@pytest.mark.parametrize("case", [name for name in TINY if name != "flux2"], indirect=True)
@pytest.mark.parametrize(("scale", "cached", "away"), [(2.0, False, True), (4.0, True, False)])
def test_guided_latents_equal_the_pipelines_own(case: Case, scale: float, cached: bool, away: bool) -> None:
    """A number that is copied from there draws the same pictures here. FLUX.2-dev's takes none."""
    policy = case.cached if cached else case.policy
    true_cfg = case.policy.provenance()["family"] in TRUE_CFG  # which takes no negative prompt for none
    given = negatives(case) if away else [""] * len(PROMPTS)
    stated = told(case, given) if away or true_cfg else {}
    name = "true_cfg_scale" if true_cfg else "guidance_scale"
    run = plain_run(case, case.plain, **stated, **{name: scale})
    ours = guided_latents(case, policy, scale, given)
    case.record("guided latents", ours - run.latents[-1])
    torch.testing.assert_close(ours, run.latents[-1], rtol=1e-5, atol=3e-5)
    assert (ours - case.drawn.latents[-1]).abs().flatten(1).amax(1).min() > 1e-2
    images, _ = policy.decode(ours)
    case.record("guided pictures", beyond_rounding(images, run.images))
    assert_same_images(images, run.images)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_negative_prompts_without_guidance_have_no_effect(case: Case, scale: float) -> None:
    ours = guided_latents(case, case.policy, scale)
    torch.testing.assert_close(ours, case.drawn.latents[-1], rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("case", ["z_image"], indirect=True)
@pytest.mark.parametrize("bounds", [(1.0, 1.0), (0.5, 1.0), (0.0, 0.3), (1.2, 0.6)])
def test_bounds_of_guidance_equal_the_z_image_pipelines_own(case: Case, bounds: tuple[float, float]) -> None:
    names = ("cfg_normalization", "cfg_truncation")
    given = dict(zip(names, bounds, strict=True))
    run = plain_run(case, case.plain, negative_prompt=list(NEGATIVES), guidance_scale=4.0, **given)
    ours = guided_latents(case, case.policy, 4.0, **given)
    torch.testing.assert_close(ours, run.latents[-1], rtol=1e-5, atol=3e-5)
    assert (ours - guided_latents(case, case.policy, 4.0)).abs().max() > 1e-2


@torch.no_grad()
def test_velocity_in_a_batch_equals_that_of_the_sample_alone(case: Case) -> None:
    """Alone, its prompt is not padded at all."""
    policy, xt = case.policy, case.start()
    together = policy.velocity(xt, case.times, case.encode(policy), "trained")
    for i, prompt in enumerate(PROMPTS):
        alone = policy.velocity(
            xt[i : i + 1], case.times[i : i + 1], case.encode(policy, [prompt]), "trained"
        )
        case.record("alone", alone[0] - together[i])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)


def test_times_of_the_second_order_solver_have_the_pipelines_shift(case: Case) -> None:
    """Times are s u / (1 + (s - 1) u) of diffusers' even u, with the pipeline's shift s."""
    config = case.plain.scheduler.config
    times = sampling_times(case.scheduler(OdeSolver.dpm2))
    if case.network == "unet":
        noised = DPMSolverMultistepScheduler.from_config(config)
        noised.set_timesteps(STEPS)
        torch.testing.assert_close(times, noised.sigmas[:-1] / (1 + noised.sigmas[:-1]))
        return
    shift = torch.tensor(config.shift)
    if config.use_dynamic_shifting:
        slope = (config.max_shift - config.base_shift) / (64 - 4)
        shift = torch.tensor(config.base_shift + slope * (case.tiny.tokens - 4)).exp()
        if case.tiny.choice.startswith("flux2"):
            shift = torch.tensor(compute_empirical_mu(case.tiny.tokens, STEPS)).exp()
    even = 1 - torch.linspace(1, 1 / 1000, STEPS + 1).flip(0)[:-1]
    torch.testing.assert_close(times, shift * even / (1 + (shift - 1) * even))
    if case.tiny.choice in ("sana", "wan"):
        own = DPMSolverMultistepScheduler.from_pretrained(case.model.path, subfolder="scheduler")
        own.set_timesteps(STEPS)
        assert torch.equal(times, own.sigmas[:-1])


def test_cached_embeddings_equal_those_of_single_prompts(case: Case) -> None:
    alone = [case.encode(case.policy, [prompt]) for prompt in PROMPTS]
    for name, tensor in case.encode(case.cached).tensors.items():
        assert torch.equal(tensor, torch.cat([one.tensors[name] for one in alone]))


def test_many_prompts_are_encoded_in_parts(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = case.policy
    monkeypatch.setitem(DECODED_PIXELS, "cpu", 10**9)  # else there are as few pictures as the VAE takes
    whole, sizes, encode = case.encode_anew(policy), list[int](), policy.family.encode
    monkeypatch.setattr(
        policy.family, "encode", lambda part, *images: sizes.append(len(part)) or encode(part, *images)
    )
    monkeypatch.setattr("marble_cli.policy.pipeline.ENCODED_TOKENS", 2 * case.model.max_sequence_length + 1)
    parts = case.encode_anew(policy)
    assert sizes == ([2, 1] if case.model.max_sequence_length else [3])
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(parts.tensors[name], tensor, rtol=1e-4, atol=1e-5)
