"""Compare ours with the published recipe on random weights of Stable Diffusion 3.5 Medium's size.

    python -m scripts.bench.sd35m [--small] [--repeats 7] [--compile] [--json FILE] [--output FILE.md]

Ours keeps the frozen weights in bfloat16. The recipe keeps them in float32 under autocast and takes one
backward pass per reward. Measured are a rollout of 9 images, a training pass over 9 samples and a refresh of
five rewards, at 512 pixels. This needs a GPU of 80 GB; `--small` tries it out without one.
"""

import argparse
import shlex
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from torch.utils.flop_counter import FlopCounterMode

from marble_cli.config.compose import compose
from marble_cli.config.enums import Switch
from marble_cli.config.schema import RunConfig
from marble_cli.policy.base import PromptEmbeddings
from marble_cli.policy.source import config_folder, read_json
from marble_cli.rollout.ode import make_scheduler, sample
from marble_cli.seeds import noise
from scripts.bench.report import Cell, Sheet, publish
from scripts.bench.scenes import Scene, make_scene, random_policy
from scripts.bench.steps import check_agreement, published_refresh, step_job
from scripts.bench.timing import Job, alternate, peak_bytes, ratio

MODEL = "stabilityai/stable-diffusion-3.5-medium"
REWARDS = 5
# Dense bfloat16 FLOP/s from the makers' data sheets; the first name that the GPU's own name contains counts.
PEAK = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
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
COLUMNS = {
    "what": "",
    "whose": "",
    "seconds": ".3f",
    "peak GiB": ".2f",
    "TFLOP": ".2f",
    "utilisation": ".0%",
    "speed-up": ".2f",
}

Seconds = dict[tuple[str, str], list[float]]  # by part and side ("ours" or "recipe"), one figure per round


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
        transformer = SD3Transformer2DModel.from_config(shape | {"sample_size": config.model.resolution // 8})
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


def make_jobs(ours: Scene, recipe: Scene) -> dict[tuple[str, str], Job]:
    """Return the jobs to time, by part and side."""
    return {
        ("rollout", "ours"): rollout_job(ours),
        ("rollout", "recipe"): rollout_job(recipe),
        ("training", "ours"): step_job(ours, REWARDS, outside=True),
        ("training", "recipe"): step_job(recipe, 1, plain=True),
        ("refresh", "ours"): step_job(ours, REWARDS, refresh=True, outside=True),
        ("refresh", "recipe"): lambda: published_refresh(recipe, REWARDS),
    }


def count_flops(job: Job) -> float:
    """Count the floating-point operations of the matrix products and attentions of one call.

    The call runs eagerly: blocks that Dynamo first meets under a counter stay uncompiled for good.
    """
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        job()
    return float(counter.get_total_flops())


def peak_speed() -> float | None:
    """Return this GPU's FLOP/s in bfloat16, None if it is not in `PEAK`."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((speed for name, speed in PEAK.items() if name in gpu), None)


def measure_parts(ours: Scene, recipe: Scene, repeats: int) -> tuple[Sheet, Seconds]:
    """Measure seconds, memory and utilisation of every job."""
    jobs = make_jobs(ours, recipe)
    operations, fastest = {key: count_flops(job) for key, job in jobs.items()}, peak_speed()
    peaks = {key: peak_bytes(job, ours.policy.device) for key, job in jobs.items()}
    seconds = alternate(jobs, repeats)
    rows: list[tuple[Cell, ...]] = []
    for key, times in seconds.items():
        part, side = key
        median = statistics.median(times)
        speed_up = ratio(seconds[part, "recipe"], times) if side == "ours" else None
        utilisation = operations[key] / median / fastest if fastest else None
        memory, teraflops = peaks[key] / 2**30, operations[key] / 1e12
        rows.append((part, side, median, memory, teraflops, utilisation, speed_up))
    note = (
        f"{len(ours.data.x0)} images of {ours.policy.tokens} tokens; medians of {repeats} alternating "
        "repeats. Peaks exclude weights and adapters; utilisation is of the operations computed, against "
        "dense bfloat16."
    )
    return Sheet("Parts of a step", note, COLUMNS, rows), seconds


def whole_step(config: RunConfig, images: int, seconds: Seconds) -> Sheet:
    """Compute images per second of the paper's step on one GPU from its parts; one step in ten refreshes.

    The recipe refreshes on one micro-batch of the step, ours on all.
    """
    total = config.rollout.groups * config.rollout.group_size
    batches = total / images
    passes = batches * max(1, int(config.rollout.steps * config.trainer.timestep_fraction))
    every = config.balance.refresh_every
    median = {key: statistics.median(times) for key, times in seconds.items()}

    def images_per_second(side: str, refreshed: float) -> float:
        training = passes * median["training", side]
        extra = refreshed * (median["refresh", side] - median["training", side]) / every
        return total / (batches * median["rollout", side] + training + extra)

    ours, recipe = images_per_second("ours", passes), images_per_second("recipe", 1)
    return Sheet(
        "The whole step",
        f"{total} images, {passes:.0f} training passes on one GPU; decoding and rewards are left out.",
        {"whose": "", "images/s": ".3f", "x recipe": ".2f"},
        [("ours", ours, ours / recipe), ("recipe", recipe, 1.0)],
    )


def main(arguments: list[str]) -> None:
    """Check that both sides agree on the direction, then measure them."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.sd35m",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--small", action="store_true", help="use a small model of the same kind")
    parser.add_argument("--compile", action="store_true", help="compile our transformer blocks")
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument("--output", type=Path, metavar="FILE.md", help="write the tables to this file")
    options = parser.parse_args(arguments)
    images = 4 if options.small else 9
    config = step_config(options.small, f"model.compile={str(options.compile).lower()}")
    ours = random_sd35m(config, options.small, images)
    eager = replace(config, model=replace(config.model, compile=Switch.false))
    recipe = random_sd35m(eager, options.small, images)
    # Compared without compilation: a refresh is never compiled, and compiled passes round differently.
    cosine = check_agreement(recipe, REWARDS)
    recipe.policy.transformer.float()
    recipe.policy.autocast = True
    parts, seconds = measure_parts(ours, recipe, options.repeats)
    publish(
        [parts, whole_step(config, images, seconds)],
        shlex.join(["python", "-m", "scripts.bench.sd35m", *arguments]),
        options.output,
        options.json,
        remark=f"directions of ours and of the recipe: cosine {cosine:.5f}",
    )


if __name__ == "__main__":
    main(sys.argv[1:])
