"""Compare ours with the published recipe on random weights of Stable Diffusion 3.5 Medium's size.

    python -m scripts.bench.sd35m [--small] [--repeats 7] [--compile] [--json FILE] [--output FILE.md]

Ours keeps the frozen weights in bfloat16. The recipe keeps them in float32 under autocast and takes one
backward pass per reward. Measured are a rollout of 9 images, a training pass over 9 samples with and without
the frozen model, and a refresh of five rewards, at 512 pixels; ours eager and, with `--compile`, compiled.
Beside each are the seconds that a roofline of one H100 SXM forecasts (`scripts.bench.roofline`).

The file of `--json` is written after each part. This needs a GPU of 80 GB; `--small` tries it out without
one. What else is on the command line are overrides of both sides.
"""

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from torch.utils.flop_counter import FlopCounterMode

from marble_cli.balance.base import cosines
from marble_cli.balance.gram import gram
from marble_cli.config.compose import compose
from marble_cli.config.enums import Switch
from marble_cli.config.resolution import read_resolution
from marble_cli.config.schema import RunConfig
from marble_cli.policy.base import PromptEmbeddings
from marble_cli.policy.load import pick_device
from marble_cli.policy.pipeline import PipelinePolicy
from marble_cli.policy.source import config_folder, read_json
from marble_cli.policy.trainable.blocks import repeated_blocks
from marble_cli.rollout.ode import make_scheduler, sample
from marble_cli.seeds import noise
from scripts.bench.parts import Measured, parts_sheet
from scripts.bench.report import Sheet, publish, write_json
from scripts.bench.roofline import forecast, note_kernel_sizes
from scripts.bench.scenes import Scene, make_scene, random_policy
from scripts.bench.steps import AGREEMENT, check_agreement, published_refresh, step_job
from scripts.bench.timing import Job, Progress, alternate, peak_bytes
from scripts.bench.whole_step import (
    COMPILED,
    EAGER,
    PARTS,
    RECIPE,
    REFRESH,
    ROLLOUT,
    TRAINING,
    WITHOUT_KL,
    whole_step,
)

MODEL = "stabilityai/stable-diffusion-3.5-medium"
REWARDS = 5
SMALL_SHAPE = {
    "num_layers": 2,
    "dual_attention_layers": [0],
    "num_attention_heads": 2,
    "caption_projection_dim": 128,
    "joint_attention_dim": 64,
    "pooled_projection_dim": 32,
    "pos_embed_max_size": 16,
}
CLIP_TOKENS = 77
SMALL_AGREEMENT = 0.95  # bfloat16 alone turns the small model's refresh to a cosine of 0.98 with float32


def step_config(small: bool, *overrides: str) -> RunConfig:
    """Compose the settings of the paper's step, or of one with a twentieth of its rollout if `small`."""
    size = ("model.resolution=64", "rollout.steps=3") if small else ()
    rewards = "rewards=[colorfulness,compressibility]"  # never called; these two are always installed
    return compose(["preset=sd35m_5r", rewards, *size, *overrides])


def random_sd35m(config: RunConfig, small: bool, images: int) -> Scene:
    """Make one micro-batch on a random transformer of the model's own configuration."""
    folder = config_folder(MODEL)
    assert folder is not None
    shape = read_json(folder / "transformer" / "config.json") | (SMALL_SHAPE if small else {})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with torch.device(pick_device(config.model.device)):  # a CPU takes a minute to draw 2.2 G numbers
            side = read_resolution(config.model.resolution).width // 8
            transformer = SD3Transformer2DModel.from_config(shape | {"sample_size": side})
        policy = random_policy(transformer, config.model)
        text_tokens = CLIP_TOKENS + config.model.max_sequence_length
        tokens = torch.randn(images, text_tokens, shape["joint_attention_dim"])
        pooled = torch.randn(images, shape["pooled_projection_dim"])
    embeddings = {
        name: tensor.to(policy.device, policy.dtype)
        for name, tensor in (("tokens", tokens), ("pooled", pooled))
    }
    return make_scene(config.model.precision.value, config, policy, PromptEmbeddings(embeddings))


def rollout_job(scene: Scene) -> Job:
    """Return a job that draws a micro-batch's latents from the behaviour policy.

    Decoding is left out, since the VAE is the same on both sides.
    """
    policy, rollout, embeddings = scene.policy, scene.config.rollout, scene.data.embeddings[:]
    start = noise(0, "bench", 0, list(range(len(embeddings))), policy.latent_shape).to(policy.device)

    @torch.no_grad()
    def draw_latents() -> object:
        scheduler = make_scheduler(
            policy.scheduler_config(), rollout.solver, rollout.steps, policy.tokens, times=rollout.times
        )
        return sample(lambda xt, t: policy.velocity(xt, t, embeddings, "behaviour"), start, scheduler)

    return draw_latents


def make_jobs(recipe: Scene, ours: Scene, part: str) -> dict[str, Job]:
    """Return the jobs of a part, by whose they are: the recipe's, ours eager and, if it is so, compiled."""
    config = replace(ours.config, algorithm=replace(ours.config.algorithm, kl_coef=0.0))
    theirs: dict[str, Job] = {
        ROLLOUT: rollout_job(recipe),
        TRAINING: step_job(recipe, 1, plain=True),
        REFRESH: lambda: published_refresh(recipe, REWARDS),
    }
    own: dict[str, Job] = {
        ROLLOUT: rollout_job(ours),
        TRAINING: step_job(ours, REWARDS, outside=True),
        WITHOUT_KL: step_job(replace(ours, config=config), REWARDS, outside=True),
        REFRESH: step_job(ours, REWARDS, refresh=True, outside=True),
    }
    jobs = {RECIPE: theirs[part]} if part in theirs else {}
    jobs[EAGER] = eagerly(ours.policy, own[part])
    return jobs | ({COMPILED: own[part]} if ours.policy.compiled else {})


def eagerly(policy: PipelinePolicy, job: Job) -> Job:
    """Return a job that runs as if the policy's blocks had never been compiled."""

    def run() -> object:
        blocks = repeated_blocks(policy.network)
        kept = [block._compiled_call_impl for block in blocks]
        try:
            for block in blocks:
                block._compiled_call_impl = None
            return job()
        finally:
            for block, compiled in zip(blocks, kept, strict=True):
                block._compiled_call_impl = compiled

    return run


def check_compiled(ours: Scene, least: float) -> float:
    """Return the smallest cosine between a direction through compiled blocks and the eager one.

    Raises:
        AssertionError: a cosine is not above `least`, so comparing times would mean nothing.
    """
    found = []
    for refresh in (False, True):
        job = step_job(ours, REWARDS, refresh=refresh, outside=True)
        both = torch.stack([job(), eagerly(ours.policy, job)()])  # type: ignore[list-item]
        found.append(cosines(gram(both), torch.tensor([1.0, 0.0], dtype=torch.float64))[1].item())
    assert min(found) > least, f"the cosines of compiled and eager directions are {found}"
    return min(found)


def count_flops(job: Job) -> float:
    """Count the floating-point operations of the matrix products and attentions of one call.

    The call runs eagerly: blocks that Dynamo first meets under a counter stay uncompiled for good.
    """
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        job()
    return float(counter.get_total_flops())


def measure_part(recipe: Scene, ours: Scene, part: str, repeats: int) -> list[Measured]:
    """Measure seconds, memory and operations of all jobs of a part, in alternating rounds.

    Operations are counted by the first, eager call. Compilation is over before a peak is taken, and the call
    that takes the peak is the warm-up.
    """
    jobs, device = make_jobs(recipe, ours, part), ours.policy.device
    operations = {whose: count_flops(job) for whose, job in jobs.items() if whose != COMPILED}
    if COMPILED in jobs:
        operations[COMPILED] = operations[EAGER]
        jobs[COMPILED]()
    forecasts = {whose: forecast(job, device) for whose, job in jobs.items()}
    peaks = {whose: peak_bytes(job, device) for whose, job in jobs.items()}
    seconds = alternate(jobs, repeats, warm_up=False)
    return [
        Measured(part, whose, seconds[whose], peaks[whose], operations[whose], forecasts[whose])
        for whose in jobs
    ]


def main(arguments: list[str]) -> None:
    """Check that both sides agree on the direction, then measure them."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.sd35m",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--small", action="store_true", help="use a small model of the same kind")
    parser.add_argument("--compile", action="store_true", help="measure our transformer blocks compiled, too")
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument("--output", type=Path, metavar="FILE.md", help="write the tables to this file")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="further settings of both sides")
    options = parser.parse_args(arguments)
    clock, images = Progress(), 4 if options.small else 9
    compiled = f"model.compile={str(options.compile).lower()}"
    config = step_config(options.small, *options.overrides, compiled)
    eager = replace(config, model=replace(config.model, compile=Switch.false))
    ours, recipe = (random_sd35m(side, options.small, images) for side in (config, eager))
    clock.tell("models made")
    # Compared without compilation: the recipe takes more backward passes than compiled code allows.
    clock.tell(f"directions of ours and of the recipe: cosine {check_agreement(recipe, REWARDS):.5f}")
    if ours.policy.compiled:
        note_kernel_sizes()
        least = SMALL_AGREEMENT if options.small else AGREEMENT
        clock.tell(f"compiled; compiled and eager directions: cosine {check_compiled(ours, least):.5f}")
    recipe.policy.network.float()
    recipe.policy.autocast = True
    command = shlex.join(["python", "-m", "scripts.bench.sd35m", *arguments])
    measured: list[Measured] = []
    sheets: list[Sheet] = []
    for part in PARTS:
        found = measure_part(recipe, ours, part, options.repeats)
        measured += found
        clock.tell(f"{part}: " + ", ".join(f"{one.whose} {one.median:.3f} s" for one in found))
        sheets = [parts_sheet(measured, ours, options.repeats)]
        if part == PARTS[-1]:
            medians = {(one.part, one.whose): one.median for one in measured}
            forecasts = {(one.part, one.whose): one.forecast for one in measured}
            sheets.append(whole_step(config, images, medians, forecasts))
        if options.json:
            write_json(sheets, command, options.json)
    publish(sheets, command, options.output, None)


if __name__ == "__main__":
    main(sys.argv[1:])
