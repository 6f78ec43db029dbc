"""Stable Diffusion 3.5 Medium at its true size, with random weights: ours beside the published recipe, in one run.

    python scripts/bench_sd35m.py [--small] [--repeats 7] [--compile] [--json FILE] [--output FILE.md]

Ours keeps the frozen weights in bfloat16; the recipe keeps them in float32 under autocast and takes a reward's gradient by
a backward pass of its own. A rollout of 9 images, a training pass over 9 samples and a refresh at K = 5, at 512 pixels.
It wants a GPU of 80 GB; `--small` is for trying it out without one.
"""

import argparse
import json
import shlex
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import torch
from bench import WIDTH, machine, page
from bench_scenes import Scene, make_scene, random_policy
from bench_steps import check_agreement, published_refresh, step_job
from bench_tools import Cell, Job, Sheet, alternate, peak_bytes, ratio
from diffusers import SD3Transformer2DModel
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from marble_cli.config.compose import compose
from marble_cli.config.schema import RunConfig
from marble_cli.policy.base import PromptEmbeddings
from marble_cli.policy.source import config_folder, read_json
from marble_cli.rollout.ode import make_scheduler, sample
from marble_cli.seeds import noise

MODEL = "stabilityai/stable-diffusion-3.5-medium"
REWARDS = 5
# Dense bfloat16 FLOP/s by the makers' data sheets; the first name that a GPU's own contains counts.
PEAK = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
SMALL = {"num_layers": 2, "dual_attention_layers": [0], "num_attention_heads": 2, "caption_projection_dim": 128,
         "joint_attention_dim": 64, "pooled_projection_dim": 32, "pos_embed_max_size": 16}  # fmt: skip


def settings(small: bool, *overrides: str) -> RunConfig:
    """The paper's step; a twentieth of its rollout where it is small."""
    size = ("model.resolution=64", "rollout.steps=3") if small else ()
    rewards = "rewards=[colorfulness,compressibility]"  # none is asked; these are always installed
    return compose(["preset=sd35m_5r", rewards, *size, *overrides])


def make(config: RunConfig, small: bool, images: int) -> Scene:
    """One micro-batch of `images` on a random transformer of the model's own configuration, in the VAE's latent space."""
    folder = config_folder(MODEL)
    assert folder is not None
    shape = read_json(folder / "transformer" / "config.json") | (SMALL if small else {})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = SD3Transformer2DModel.from_config(shape | {"sample_size": config.model.resolution // 8})
        policy = random_policy(transformer, config.model)
        tokens = torch.randn(images, 77 + config.model.max_sequence_length, shape["joint_attention_dim"])
        pooled = torch.randn(images, shape["pooled_projection_dim"])
    embeddings = {
        name: tensor.to(policy.device, policy.dtype)
        for name, tensor in (("tokens", tokens), ("pooled", pooled))
    }
    return make_scene(config.model.precision.value, config, policy, PromptEmbeddings(embeddings))


def rollout_job(scene: Scene) -> Job:
    """Latents of a micro-batch's images from the behaviour policy; the VAE is the same for both and left out."""
    policy, config, embeddings = scene.policy, scene.config, scene.data.embeddings[:]
    begin = noise(0, "bench", 0, list(range(len(embeddings))), policy.latent_shape).to(policy.device)

    @torch.no_grad()
    def job() -> object:
        rollout = config.rollout
        scheduler = make_scheduler(
            policy.scheduler_config(), rollout.solver, rollout.steps, policy.tokens, times=rollout.times
        )
        return sample(lambda xt, t: policy.velocity(xt, t, embeddings, "behaviour"), begin, scheduler)

    return job


def jobs(ours: Scene, recipe: Scene) -> dict[tuple[str, str], Job]:
    """What is timed, by what it is and whose."""
    return {
        ("rollout", "ours"): rollout_job(ours),
        ("rollout", "recipe"): rollout_job(recipe),
        ("training", "ours"): step_job(ours, REWARDS, outside=True),
        ("training", "recipe"): step_job(recipe, 1, plain=True),
        ("refresh", "ours"): step_job(ours, REWARDS, refresh=True, outside=True),
        ("refresh", "recipe"): lambda: published_refresh(recipe, REWARDS),
    }


def flops(job: Job) -> float:
    """Count the floating-point operations of the matrix products and attentions of one call.

    The call runs eagerly: blocks that Dynamo first meets under a counter stay uncompiled for good.
    """
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        job()
    return float(counter.get_total_flops())


def peak_speed() -> float | None:
    """FLOP/s of this GPU in bfloat16, where it is known."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((speed for known, speed in PEAK.items() if known in name), None)


def measure(ours: Scene, recipe: Scene, repeats: int) -> tuple[Sheet, dict[tuple[str, str], list[float]]]:
    """Seconds, memory and utilisation of every job."""
    work = jobs(ours, recipe)
    counted, fastest = {key: flops(job) for key, job in work.items()}, peak_speed()
    peaks = {key: peak_bytes(job, ours.policy.device) for key, job in work.items()}
    seconds = alternate(work, repeats)
    rows: list[tuple[Cell, ...]] = []
    for (what, whose), took in seconds.items():
        key, middle = (what, whose), statistics.median(took)
        gain = ratio(seconds[what, "recipe"], took) if whose == "ours" else None
        used = counted[key] / middle / fastest if fastest else None
        rows.append((what, whose, middle, peaks[key] / 2**30, counted[key] / 1e12, used, gain))
    columns = {
        "what": "", "whose": "", "seconds": ".3f", "peak GiB": ".2f", "TFLOP": ".2f", "utilisation": ".0%", "speed-up": ".2f",
    }  # fmt: skip
    note = (
        f"{len(ours.data.x0)} images of {ours.policy.tokens} tokens; medians of {repeats} alternating repeats. Peaks are "
        "beyond weights and adapters; utilisation counts what is computed, against dense bfloat16."
    )
    return Sheet("Parts of a step", note, columns, rows), seconds


def whole_step(config: RunConfig, images: int, seconds: dict[tuple[str, str], list[float]]) -> Sheet:
    """Images a second of the paper's step on one GPU, put together from its parts; one step in ten refreshes.

    The recipe's refresh takes the rewards apart on one micro-batch of the step, ours on all.
    """
    total = config.rollout.groups * config.rollout.group_size
    batches = total / images
    passes = batches * max(1, int(config.rollout.steps * config.trainer.timestep_fraction))
    every = config.balance.refresh_every
    middle = {key: statistics.median(took) for key, took in seconds.items()}

    def rate(whose: str, refreshed: float) -> float:
        training = passes * middle["training", whose]
        more = refreshed * (middle["refresh", whose] - middle["training", whose]) / every
        return total / (batches * middle["rollout", whose] + training + more)

    ours, recipe = rate("ours", passes), rate("recipe", 1)
    return Sheet(
        "The whole step",
        f"{total} images, {passes:.0f} training passes on one GPU; decoding and rewards are left out.",
        {"whose": "", "images/s": ".3f", "x recipe": ".2f"},
        [("ours", ours, ours / recipe), ("recipe", recipe, 1.0)],
    )


def main(options: argparse.Namespace) -> None:
    images = 4 if options.small else 9
    switches = ["model.compile=true"] if options.compile else []
    config = settings(options.small, *switches)
    ours = make(config, options.small, images)
    recipe = make(replace(config, model=replace(config.model, compile=False)), options.small, images)
    cosine = check_agreement(
        recipe, REWARDS
    )  # compiled, a pass rounds otherwise than a refresh, which never is
    recipe.policy.transformer.float()
    parts, seconds = measure(ours, recipe, options.repeats)
    done = [parts, whole_step(config, images, seconds)]
    console = Console(width=WIDTH)
    console.print(", ".join(f"{key} {value}" for key, value in machine().items()))
    console.print(f"directions of ours and of the recipe: cosine {cosine:.5f}")
    for sheet in done:
        console.print(sheet.table())
    command = shlex.join(["python", *sys.argv])
    if options.output:
        options.output.write_text(page(done, command), encoding="utf-8")
    if options.json:
        content = {"command": command, "machine": machine(), "tables": [sheet.data() for sheet in done]}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a small model of the same kind")
    parser.add_argument("--compile", action="store_true", help="compile our blocks")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--output", type=Path, help="write the tables there, in Markdown")
    main(parser.parse_args())
