"""The plan of a run: counts, memory and time from the configuration alone, and what it refuses."""

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from marble_cli.config.counts import geometry, times_per_image
from marble_cli.config.schema import RunConfig
from marble_cli.errors import ConfigError, DataError, RequestError
from marble_cli.plan import lines
from marble_cli.plan.mixture import mixed_size, typical_groups
from marble_cli.plan.plan import plan
from marble_cli.plan.work import COPY_SPEED, copying_seconds, seconds
from marble_cli.policy.size import model_size
from marble_cli.step.batches import training_times
from tests.plan.small_model import SIZE

RunConfigMaker = Callable[..., RunConfig]


def test_geometry_counts_images_times_and_samples_of_a_step(run_config: RunConfigMaker) -> None:
    counts = geometry(run_config("rollout.groups=5", "rollout.group_size=4", "trainer.times_per_image=2"))
    assert (counts.images, counts.times, counts.samples) == (20, 2, 40)


@pytest.mark.parametrize("steps", [1, 3, 25])
@pytest.mark.parametrize("fraction", [0.3, 0.99, 1.0])
@pytest.mark.parametrize("wanted", ["1", "4", "null"])
def test_geometry_counts_the_times_that_training_draws(
    run_config: RunConfigMaker, steps: int, fraction: float, wanted: str
) -> None:
    config = run_config(
        f"rollout.steps={steps}",
        f"trainer.timestep_fraction={fraction}",
        f"trainer.times_per_image={wanted}",
    )
    times = torch.linspace(1, 0.1, steps)
    drawn = training_times(times, fraction, config.trainer.times_per_image, [0], 0, 1)
    assert geometry(config).times == drawn.shape[1]


def test_a_share_of_the_times_is_what_its_decimals_say() -> None:
    for steps, percent in itertools.product(range(1, 101), range(1, 101)):
        assert times_per_image(steps, percent / 100, None)[0] == max(1, steps * percent // 100)


def test_estimated_time_counts_forward_and_backward_passes(run_config: RunConfigMaker) -> None:
    """A step draws 6 images by 3 forward passes each, and trains on 6 samples.

    A sample takes 3 forward passes and 1 backward pass; a refresh takes 1 more backward pass. A checkpointed
    backward pass takes a forward pass more.
    """
    forward, backward = SIZE.cost.forward, SIZE.cost.backward
    step, further = 6 * 3 * forward + 6 * (3 * forward + backward), 6 * backward

    def estimate(*overrides: str) -> float:
        return seconds(run_config("trainer.steps=20", *overrides), SIZE, 1e9)

    assert estimate() == pytest.approx((20 * step + 2 * further) / 1e9)
    assert estimate("balance.mode=full") == pytest.approx(20 * (step + further) / 1e9)
    assert estimate("balance.refresh_when=stale") == estimate("balance.mode=full"), "an upper bound"
    inside = estimate("balance.mode=full", "balance.shared_term=inside", "balance.refresh_fraction=0.5")
    assert inside == pytest.approx(20 * (step + further) / 1e9)
    assert estimate("balance=output_space") == pytest.approx(20 * (step + further) / 1e9)
    halved = estimate("algorithm.kl_every=2", "trainer.micro_batch_size=3")  # of the frozen model's passes
    assert halved == pytest.approx((20 * (step - 3 * forward) + 2 * further) / 1e9)
    most = estimate("algorithm.kl_every=9", "trainer.micro_batch_size=3")
    assert most == halved, "there are two micro-batches"
    full = estimate("balance.mode=full", "model.train=full")  # two rewards: two passes more than a plain step
    assert full == pytest.approx(20 * (step + 2 * further) / 1e9)
    again = estimate("model.gradient_checkpointing=true") - estimate()
    assert again == pytest.approx((20 + 2) * 6 * forward / 1e9)
    assert estimate("launcher.nproc=2") == pytest.approx(estimate() / 2)
    assert seconds(run_config("trainer.steps=20"), SIZE, 2e9) == pytest.approx(estimate() / 2)


def test_estimated_time_counts_padding_and_whole_groups(run_config: RunConfigMaker) -> None:
    """Two prompts of three images: of four processes, each draws two images, or a whole group of three."""
    settings = "algorithm.kl_every=9", "trainer.micro_batch_size=1", "launcher.nproc=4"
    forward, backward = SIZE.cost.forward, SIZE.cost.backward
    for together, images in ((1, 2), (3, 3)):
        spent = seconds(run_config("trainer.steps=1", "balance.warmup=0", *settings), SIZE, 1e9, together)
        plain = images * (3 * forward + 2 * forward + backward) + forward  # one micro-batch has a KL term
        assert spent == pytest.approx((plain + images * backward) / 1e9)


def test_estimated_time_counts_whole_micro_batches_of_a_refresh(run_config: RunConfigMaker) -> None:
    """Of two micro-batches a tenth is one."""
    full = "trainer.steps=1", "trainer.micro_batch_size=3"
    half = seconds(run_config(*full, "balance.refresh_fraction=0.5"), SIZE, 1e9)
    assert seconds(run_config(*full, "balance.refresh_fraction=0.1"), SIZE, 1e9) == pytest.approx(half)


def test_offloaded_blocks_are_copied_in_every_pass_over_a_batch(run_config: RunConfigMaker) -> None:
    """A step draws 6 images in 2 batches by 3 passes, and trains on 2 micro-batches by 3 forward passes.

    A backward pass copies all blocks once; a refresh takes 1 more.
    """
    drawn, trained, refreshed = 2 * 3, 2 * (3 + 1), 2

    def estimate(*overrides: str) -> float:
        return copying_seconds(run_config("trainer.steps=20", *overrides), 10**9) * COPY_SPEED / 10**9

    assert estimate() == pytest.approx(20 * (drawn + trained) + 2 * refreshed)
    assert estimate("balance.mode=full") == pytest.approx(20 * (drawn + trained + refreshed))
    assert estimate("rollout.batch_size=6") == pytest.approx(20 * (drawn / 2 + trained) + 2 * refreshed)
    assert estimate("launcher.nproc=2") == pytest.approx(estimate() / 2)


def test_plan_says_what_offloaded_blocks_take_and_cost(
    run_config: RunConfigMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(run_config(f"run.dir={tmp_path}", "model.offload=blocks"))
    said = " ".join(capsys.readouterr().out.split())
    assert "MiB of blocks in the CPU's memory" in said
    assert "are copied to the GPU in every pass over a batch: 25 GB/s (PCIe 4.0) take 1 min" in said
    assert "with model.offload=blocks a block is copied again for its backward pass" in said


@pytest.mark.parametrize(
    ("spent", "said"),
    [
        (3, "1 min"),
        (89, "1 min"),
        (91, "2 min"),
        (3599, "1 h 0 min"),
        (3600, "1 h 0 min"),
        (7380, "2 h 3 min"),
        (172_800, "2 days"),
    ],
)
def test_durations_are_rounded_to_minutes_hours_or_days(spent: float, said: str) -> None:
    assert lines._duration(spent) == said


def test_plan_prints_counts_of_prompts_images_steps_and_processes(
    run_config: RunConfigMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(run_config(f"run.dir={tmp_path}", "trainer.steps=12"))
    said = " ".join(capsys.readouterr().out.split())
    for part in (
        "first 2 held-out prompts of each",
        "2 prompts x 3 = 6",
        "6 images x 1 training times = 6",
        "12, of which 2 refresh the balance",
        "1, each with 6 images in 2 batches, and 2 micro-batches",
        "; or 2, each with 3 images in 1 batch, and 1 micro-batch",
        "begins at step 1",
        "trackers wandb",
        "W&B disabled (logging.wandb.mode)",
    ):
        assert part in said
    assert not list(tmp_path.iterdir())


def rows(said: str, heading: str) -> list[list[str]]:
    """The lines of a printed table, below its heading."""
    lines = said.split(heading)[1].split("\n\n")[0].splitlines()[1:]
    return [re.split(r"\s{2,}", line.strip()) for line in lines]


def test_plan_prints_the_share_of_each_source_and_the_prompts_of_each_reward(
    run_config: RunConfigMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(
        run_config(
            f"run.dir={tmp_path}",
            "rollout.groups=6",
            "data.sources.text.weight=2",
            "data.sources.general.weight=0",
            "rewards.colorfulness.requires=[text]",
            "+eval_rewards.seen={plugin: colorfulness, requires: [include]}",
            "+eval_rewards.asked={plugin: colorfulness, sources: [general, text]}",
        )
    )
    said = capsys.readouterr().out
    assert rows(said, "\nsource ") == [
        ["general", "4", "2", "0%", "0"],
        ["text", "4", "2", "67%", "4"],
        ["compositional", "4", "2", "33%", "2"],
    ]
    assert rows(said, "\nreward ") == [
        ["colorfulness", "text", "4 of 8 prompts (text)"],
        ["compressibility", "nothing", "8 of 8 prompts"],
        ["seen", "include", "2 of 6 held-out prompts (compositional)"],
        ["asked", "nothing", "4 of 6 held-out prompts (general, text)"],
    ]


def test_plan_counts_images_of_several_sizes(
    run_config: RunConfigMaker, sized_prompts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A quarter is wide: of ten groups two or three, and each size is shared out among processes."""
    sized = f"data.root={sized_prompts_folder}", f"run.dir={tmp_path}", "rollout.groups=10"
    plan(run_config(*sized, "launcher.nproc=4"))
    said = " ".join(capsys.readouterr().out.split())
    assert "of sizes 16 (75%), 32x16 (25%)" in said
    assert "4, each with about 8 images (2 in all are padding) in 3 batches, and 3 micro-batches" in said
    assert typical_groups(10, [0.75, 0.25]) == [8, 2]
    assert typical_groups(3, [0.6, 0.3, 0.1]) == [2, 1]
    assert typical_groups(2, [1.0]) == [2]
    model = run_config().model
    one, wide = (model_size(replace(model, resolution=size)) for size in (16, "32x16"))
    both = mixed_size(model, {(16, 0): 0.75, ("32x16", 0): 0.25}, None)
    assert one is not None
    assert wide is not None
    assert both is not None
    assert both.cost.forward == round(0.75 * one.cost.forward + 0.25 * wide.cost.forward)
    assert one.cost.forward < both.cost.forward < wide.cost.forward
    assert (both.cost.kept, both.most_kept, both.trained) == (wide.cost.kept, wide.most_kept, one.trained)


@pytest.mark.parametrize(("train", "told"), [("lora", "LoRA 512"), ("full", "all trained")])
def test_plan_names_the_trained_weights(
    run_config: RunConfigMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str], train: str, told: str
) -> None:
    plan(run_config(f"run.dir={tmp_path}", f"model.train={train}"))
    said = " ".join(capsys.readouterr().out.split())
    assert f" parameters, {told}" in said
    assert "of trained weights, moments and gradients" in said


def test_plan_says_that_compiled_blocks_take_less(
    run_config: RunConfigMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for choice, said in (("true", True), ("false", False)):
        plan(run_config(f"run.dir={tmp_path}", f"model.compile={choice}"))
        assert ("with temporary tensors; compiled, less" in " ".join(capsys.readouterr().out.split())) is said


def test_guidance_doubles_the_estimated_time_of_rollouts(run_config: RunConfigMaker) -> None:
    plain, guided = (
        seconds(run_config("trainer.steps=1", f"rollout.guidance_scale={scale}"), SIZE, 1e9)
        for scale in (1, 3)
    )
    assert guided - plain == pytest.approx(6 * 3 * SIZE.cost.forward / 1e9)


def test_plan_says_that_the_model_is_not_on_this_machine(
    run_config: RunConfigMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(run_config(f"run.dir={tmp_path}", "model.path=nobody/nothing"))
    assert "not on this machine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "error", "said"),
    [
        (["launcher.nproc=7"], ConfigError, r"7 processes cannot share the 6 images .* at most 6"),
        (["data.sources.text.train=text/trian.jsonl"], DataError, r"Did you mean .*train\.jsonl"),
        (["rewards.compressibility.qualty=3"], ConfigError, r"rewards\.compressibility\.qualty.*'quality'"),
        (["balance.floor=0.6"], ConfigError, r"balance\.floor=0\.6"),
        (["balance.solver=ospq"], ConfigError, r"'osqp'"),
        (["balance=fixed", "balance.weights.colorfulnes=1"], ConfigError, r"'colorfulness'"),
        (
            ["rewards.colorfulness.requires=[txt]"],
            ConfigError,
            r"rewards\.colorfulness applies to no prompt.*'txt'",
        ),
        (
            [
                "algorithm.kl_gate=watched",
                "+eval_rewards.seen={plugin: colorfulness, sources: [general]}",
                "data.sources.general.weight=0",
            ],
            ConfigError,
            r"kl_gate=watched: no reward under eval_rewards applies to a training prompt",
        ),
        (["run.dir=/proc/marble"], RequestError, r"run\.dir=/proc/marble cannot be written"),
        (
            ["model.embedding_cache=/proc/version"],
            RequestError,
            r"model\.embedding_cache=/proc/version cannot be written",
        ),
    ],
)
def test_plan_refuses_a_request_that_would_fail_later(
    run_config: RunConfigMaker, tmp_path: Path, overrides: list[str], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        plan(run_config(f"run.dir={tmp_path / 'run'}", *overrides))
