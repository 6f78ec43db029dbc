"""A step's rollout: the same images whatever the batches and ranks, scored in their order."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from marble_cli.config.enums import OdeSolver
from marble_cli.config.schema import RewardConfig, RolloutConfig
from marble_cli.data.prompts import Prompt
from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import RequestError, RewardError
from marble_cli.plan.checks import check_rewards
from marble_cli.rewards.builtin.colorfulness import colorfulness
from marble_cli.rewards.builtin.compressibility import Compressibility
from marble_cli.rewards.scorer import Scorer, Scores, open_scorer
from marble_cli.rollout.collect import Rollout
from marble_cli.rollout.samples import Samples
from marble_cli.seeds import noise

PROMPTS = [
    *[Prompt("a red cup", {}, "general")] * 3,
    *[Prompt('a sign that says "47"', {"text": "47"}, "text")] * 3,
    Prompt("two boats", {}, "compositional"),
]


@pytest.fixture
def scorer() -> Iterator[Scorer]:
    rewards = {
        "compressibility": RewardConfig("compressibility"),
        "colorfulness": RewardConfig("colorfulness", sources=["text"]),
    }
    with open_scorer(rewards, "cpu") as opened:
        yield opened


@pytest.fixture
def rollout(policy: Any, randomise: Callable[..., None]) -> Rollout:
    randomise(policy)
    return Rollout(policy, RolloutConfig(steps=4, solver=OdeSolver.dpm2, batch_size=3), seed=5)


def with_settings(rollout: Rollout, **changes: Any) -> Rollout:
    return replace(rollout, settings=replace(rollout.settings, **changes))


def collect(rollout: Rollout, scorer: Scorer, rows: list[int] | None = None, **changes: Any) -> Samples:
    rows = list(range(len(PROMPTS))) if rows is None else rows
    settings = {"adapter": "behaviour", "purpose": "rollout", "step": 1, "advance": lambda count: None}
    return rollout.collect([PROMPTS[i] for i in rows], rows, scorer=scorer, **(settings | changes))


def latents(samples: Samples) -> torch.Tensor:
    return torch.stack([*samples.x0])


def pictures(samples: Samples) -> torch.Tensor:
    return torch.stack([*samples.images])


def test_what_is_no_picture_has_failed_and_is_never_scored(
    rollout: Rollout, scorer: Scorer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its bytes are black, which `compressibility` likes best; others keep their scores."""
    right = collect(rollout, scorer).scores(Ranks())

    def spoil(spoiled: list[int]) -> Scores:
        def start(seed: int, purpose: str, step: int, indices: list[int], shape: Any) -> torch.Tensor:
            drawn = noise(seed, purpose, step, indices, shape)
            drawn[[index in spoiled for index in indices], 0, 0, 0] = torch.nan
            return drawn

        monkeypatch.setattr("marble_cli.rollout.collect.noise", start)
        return collect(rollout, scorer).scores(Ranks())

    scores = spoil([1, 3])
    assert scores.failed.tolist() == [[i in (1, 3) for i in range(7)], [i == 3 for i in range(7)]]
    assert torch.equal(scores.applicable, right.applicable & ~scores.failed)
    assert torch.equal(scores.values[scores.applicable], right.values[scores.applicable])
    assert scores.values[~scores.applicable].isnan().all()
    assert caplog.text.count("1 of 3 images cannot be scored: the model drew values that are not finite") == 2
    scorer.check(scores)
    with pytest.raises(RewardError, match=r"compressibility failed on 4 of 7 images.*Take a lower optimizer"):
        scorer.check(spoil([0, 1, 2, 3]))
    nothing = torch.full((2, *rollout.policy.latent_shape), torch.nan)
    monkeypatch.setattr("marble_cli.plan.checks.noise", lambda *_: nothing)
    with pytest.raises(RequestError, match=r"VAE makes values that are not finite.*model.precision=bf16"):
        check_rewards(rollout, scorer, {"general": PROMPTS})


def test_scores_images_and_prompts_keep_their_order(rollout: Rollout, scorer: Scorer) -> None:
    counts: list[int] = []
    samples = collect(rollout, scorer, advance=counts.append)
    assert counts == [3, 3, 1]
    assert samples.prompts == PROMPTS
    assert samples.scores(Ranks()).names == ["compressibility", "colorfulness"]
    assert torch.equal(pictures(samples), rollout.policy.decode(latents(samples))[0])
    values, applicable = samples.scores(Ranks()).values, samples.scores(Ranks()).applicable
    assert values[0].tolist() == pytest.approx(Compressibility()(pictures(samples)))
    assert applicable.tolist() == [[True] * 7, [False] * 3 + [True] * 3 + [False]]
    assert torch.equal(values[1, 3:6], colorfulness(pictures(samples))[3:6].double())
    assert values[1, ~applicable[1]].isnan().all()
    assert not samples.scores(Ranks()).failed.any()
    assert len(samples.embeddings) == 7
    assert len(samples.embeddings.distinct) == len({prompt.text for prompt in PROMPTS})
    apart = rollout.policy.encode([prompt.text for prompt in PROMPTS])
    for name, tensor in apart.tensors.items():
        torch.testing.assert_close(samples.embeddings[:].tensors[name], tensor)


def test_each_size_is_drawn_as_if_it_were_alone(rollout: Rollout, scorer: Scorer) -> None:
    """Two groups of one size with one of another between, and an odd one: the same bits, scores and order."""
    sizes = [16, 16, 16, "32x16", "32x16", "32x16", None]
    prompts = [replace(prompt, resolution=size) for prompt, size in zip(PROMPTS, sizes, strict=True)]
    counts: list[int] = []
    drawn: dict[str, Any] = {"scorer": scorer, "adapter": "behaviour", "purpose": "rollout", "step": 1}
    mixed = rollout.collect(prompts, range(7), **drawn, advance=counts.append)
    assert counts == [3, 1, 3]
    assert mixed.prompts == prompts
    scores = mixed.scores(Ranks())
    for size, rows in ((16, [0, 1, 2, 6]), ("32x16", [3, 4, 5])):
        one = replace(rollout, policy=rollout.policy.resized(size))
        alone = one.collect([PROMPTS[i] for i in rows], rows, **drawn, advance=lambda count: None)
        assert alone.x0[0].shape == one.policy.latent_shape
        for place, row in enumerate(rows):
            assert torch.equal(mixed.x0[row], alone.x0[place])
            assert torch.equal(mixed.images[row], alone.images[place])
        torch.testing.assert_close(
            scores.values[:, rows], alone.scores(Ranks()).values, rtol=0, atol=0, equal_nan=True
        )
        for name, tensor in alone.embeddings[:].tensors.items():
            assert torch.equal(mixed.embeddings[torch.tensor(rows)].tensors[name], tensor)


def test_times_are_those_of_each_size(rollout: Rollout) -> None:
    """A model whose shift depends on the tokens has other times for other sizes."""
    shifting = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 16}
    rollout.policy.scheduler_config = lambda: {**shifting, "base_shift": 0.5, "max_shift": 1.5}
    prompts = [Prompt("a", resolution=size) for size in ("32x16", 16, "32x16", None)]
    (wide, wide_rows), (square, square_rows) = rollout.by_shape(prompts)
    assert (wide_rows, square_rows) == ([0, 2], [1, 3])
    assert (wide.policy.tokens, square.policy.tokens) == (8, 4)
    assert wide.times()[1] > square.times()[1]
    assert torch.equal(square.times(), rollout.times())


def test_images_of_a_prompt_differ(rollout: Rollout, scorer: Scorer) -> None:
    samples = collect(rollout, scorer)
    distances = torch.cdist(latents(samples).flatten(1), latents(samples).flatten(1))
    assert distances[~torch.eye(7, dtype=torch.bool)].min() > 0.1


@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_images_do_not_depend_on_the_batch_size(rollout: Rollout, scorer: Scorer, size: int) -> None:
    one, other = collect(rollout, scorer), collect(with_settings(rollout, batch_size=size), scorer)
    torch.testing.assert_close(latents(other), latents(one), rtol=0, atol=1e-4)
    assert (pictures(other).int() - pictures(one).int()).abs().max() <= 1


def test_ranks_draw_the_same_images_as_one_process(rollout: Rollout, scorer: Scorer) -> None:
    whole = collect(rollout, scorer)
    parts = [collect(rollout, scorer, rows) for rows in ([0, 1, 2, 3], [4, 5, 6])]
    torch.testing.assert_close(
        torch.cat([latents(part) for part in parts]), latents(whole), rtol=0, atol=1e-4
    )


def test_noise_depends_on_seed_purpose_step_and_place_alone() -> None:
    base = noise(0, "rollout", 1, [3, 4, 5], (2, 3))
    assert torch.equal(noise(0, "rollout", 1, [5, 3], (2, 3)), base[[2, 0]])
    others = [noise(1, "rollout", 1, [3], (2, 3)), noise(0, "evaluate", 1, [3], (2, 3))]
    others += [noise(0, "rollout", 2, [3], (2, 3)), noise(0, "rollout", 1, [4], (2, 3))]
    assert not any(torch.equal(other[0], base[0]) for other in others)
    assert abs(noise(0, "rollout", 1, list(range(500)), (20,)).std() - 1) < 0.02


def test_all_policies_draw_from_the_same_noise(rollout: Rollout, scorer: Scorer) -> None:
    behaviour, again, base = (collect(rollout, scorer, adapter=a) for a in ("behaviour", "behaviour", None))
    assert torch.equal(latents(behaviour), latents(again))
    assert not torch.allclose(latents(behaviour), latents(base), atol=0.01)
    for parameter in rollout.policy.parameters("behaviour").values():
        parameter.data.zero_()
    torch.testing.assert_close(latents(collect(rollout, scorer)), latents(base), rtol=0, atol=1e-5)


def test_base_model_draws_the_plain_pipelines_images(
    rollout: Rollout, scorer: Scorer, pipeline_folder: Path
) -> None:
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        pipeline_folder, text_encoder_3=None, tokenizer_3=None
    )
    pipeline.set_progress_bar_config(disable=True)
    begin = noise(5, "evaluate", 0, list(range(7)), rollout.policy.latent_shape)
    theirs = pipeline(
        [prompt.text for prompt in PROMPTS],
        latents=begin,
        num_inference_steps=4,
        guidance_scale=1.0,
        max_sequence_length=0,
        height=16,
        width=16,
        output_type="pt",
    ).images
    euler = with_settings(rollout, solver=OdeSolver.euler)
    ours = pictures(collect(euler, scorer, adapter=None, purpose="evaluate", step=0))
    assert ours.float().std() > 1
    assert (ours.int() - (theirs * 255).round().int()).abs().max() <= 1


@pytest.mark.parametrize("scale", [2.0, 4.5])
def test_guided_latents_equal_the_plain_pipelines(
    rollout: Rollout, scorer: Scorer, pipeline_folder: Path, scale: float
) -> None:
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        pipeline_folder, text_encoder_3=None, tokenizer_3=None
    )
    pipeline.set_progress_bar_config(disable=True)
    begin = noise(5, "evaluate", 0, list(range(7)), rollout.policy.latent_shape)
    away = ["", "", "grey", "grey", "blurred", "", "grey"]
    prompts = [replace(prompt, negative=negative) for prompt, negative in zip(PROMPTS, away, strict=True)]
    theirs = pipeline(
        [prompt.text for prompt in prompts],
        negative_prompt=away,
        latents=begin,
        num_inference_steps=4,
        guidance_scale=scale,
        max_sequence_length=0,
        height=16,
        width=16,
        output_type="latent",
    ).images

    def ours(prompts: list[Prompt], scale: float) -> torch.Tensor:
        guided = with_settings(rollout, solver=OdeSolver.euler, guidance_scale=scale)
        drawn = guided.collect(
            prompts, range(7), scorer=scorer, adapter=None, purpose="evaluate", step=0, advance=lambda n: None
        )
        return latents(drawn)

    torch.testing.assert_close(ours(prompts, scale), theirs, rtol=0, atol=1e-4)
    assert (ours(prompts, scale) - ours(PROMPTS, scale))[[2, 3, 4, 6]].abs().amax(dim=(1, 2, 3)).min() > 1e-3
    assert torch.equal(ours(prompts, 1.0), ours(PROMPTS, 1.0))


def test_negative_prompts_of_unguided_images_are_encoded_for_training(
    rollout: Rollout, scorer: Scorer
) -> None:
    plain, more = collect(rollout, scorer), collect(replace(rollout, negatives=True), scorer)
    assert plain.negatives is None
    assert torch.equal(latents(plain), latents(more))
    assert more.negatives is not None
    empty = rollout.policy.encode([""], negative=True).tensors["tokens"]
    torch.testing.assert_close(more.negatives[slice(0, 7)].tensors["tokens"], empty.expand(7, -1, -1))
