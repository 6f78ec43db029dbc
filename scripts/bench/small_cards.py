"""Measure presets for small cards at their models' true sizes, with random weights, beside the plan.

    python -m scripts.bench.small_cards [--presets NAME ...] [--repeats 3] [--json FILE] [--output FILE.md]

Measured are one velocity of a rollout, a training pass of a micro-batch and a refresh of the preset's
rewards, with the peak of all memory that torch holds: weights, adapters and activations. A larger GPU is
allowed no more memory than the card has. Text encoders are left out, since their embeddings come from the
cache, and so are reward models. The configurations are those that marble keeps for plans, so nothing is
fetched. What else is on the command line are overrides of all presets.
"""

import argparse
import gc
import shlex
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from marble_cli.config.aspects import by_aspect
from marble_cli.config.compose import compose
from marble_cli.config.enums import Offload, Switch
from marble_cli.config.schema import ModelConfig, RunConfig
from marble_cli.plan.memory import Checkpointing, memory
from marble_cli.policy.base import PromptEmbeddings
from marble_cli.policy.cost import make_inputs
from marble_cli.policy.load import pick_device
from marble_cli.policy.model_size import ModelSize
from marble_cli.policy.pipeline import PipelinePolicy
from marble_cli.policy.size import count_prompt_tokens, make_skeleton, model_size
from marble_cli.policy.source import DTYPES, config_folder, find_family, read_json
from scripts.bench.report import Cell, Sheet, publish, write_json
from scripts.bench.scenes import Scene, make_scene
from scripts.bench.steps import step_job
from scripts.bench.timing import Job, Progress, alternate, peak_bytes

PRESETS = ("sd35m_24gb", "z_image_24gb", "flux_24gb", "flux_24gb_offload", "qwen_image_24gb")
REFRESH = "refresh"
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
COLUMNS = {
    "preset": "",
    "part": "",
    "images": ".0f",
    "seconds": ".3f",
    "per image": ".3f",
    "peak GiB": ".2f",
    "plan GiB": ".2f",
}


def random_policy(model: ModelConfig) -> tuple[PipelinePolicy, PromptEmbeddings]:
    """Make a policy of a model's network and VAE with random weights, and random embeddings of one prompt.

    Text encoders are replaced by empty modules, since nothing is encoded.
    """
    folder = config_folder(model.path)
    assert folder is not None, f"marble keeps no configuration of {model.path}"
    device, dtype = pick_device(model.device), DTYPES[model.precision]
    index = read_json(folder / "model_index.json")
    family = find_family(model, index)
    configs = {file.parent.name: read_json(file) for file in folder.glob("*/*config.json")}
    encoders = {name: make_skeleton(configs[name], *index[name]) for name in index if name in ENCODERS}
    tokens = count_prompt_tokens(model, family, encoders)
    parts: dict[str, Any] = {name: None for name, kind in index.items() if isinstance(kind, list)}
    parts |= {name: nn.Identity() for name in encoders}
    for name in (family.network, "vae", "scheduler"):
        parts[name] = _draw(getattr(diffusers, index[name][1]), configs[name], device, dtype)
    pipeline = getattr(diffusers, index["_class_name"])(**parts)
    made = family(pipeline, model)
    inputs = make_inputs(made, parts[family.network], tokens, dtype)[2]
    filled = {name: _filled(tensor, device) for name, tensor in inputs.tensors.items()}
    if model.offload is Offload.blocks:
        parts[family.network].to("cpu")  # a CPU takes minutes to draw so many numbers
    model = replace(model, embedding_cache=None)
    return PipelinePolicy(pipeline, made, model, device, seed=0), PromptEmbeddings(filled, inputs.lengths)


def _draw(kind: Any, config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    """Make a component with random weights on the device."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(0)
            made = kind.from_config(config)
    finally:
        torch.set_default_dtype(usual)
    return nn.Module.to(made, dtype) if isinstance(made, nn.Module) else made  # past diffusers' warnings


def _filled(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on the device: a mask as it is, other values drawn."""
    return (tensor if tensor.dtype == torch.bool else torch.randn(tensor.shape, dtype=tensor.dtype)).to(
        device
    )


def make_micro_batch(config: RunConfig) -> Scene:
    """Make a policy and one micro-batch, each image with a prompt of its own."""
    policy, one = random_policy(config.model)
    images = config.trainer.micro_batch_size
    return make_scene(config.model.path, config, policy, PromptEmbeddings.joined([one] * images))


def _on_card(config: RunConfig, size: ModelSize, card: float) -> RunConfig:
    """Decide on gradient checkpointing as `auto` does on a card of `card` GB."""
    choice, kept = config.model.gradient_checkpointing, Checkpointing(False).applied(config)
    if choice is not Switch.auto:
        return config
    fits = config.model.offload is Offload.none and memory(kept, size).peak <= card * 1e9
    return Checkpointing(not fits).applied(config)


def velocity_job(scene: Scene) -> Job:
    """Return a job that takes one velocity of a rollout, of as many images as are drawn at once."""
    policy, images = scene.policy, scene.config.rollout.batch_size
    rows = torch.arange(images) % len(scene.data.x0)
    xt = torch.stack([scene.data.x0[row] for row in rows.tolist()])
    embeddings = scene.data.embeddings[rows]
    t = torch.full((images,), 0.5, device=policy.device)

    @torch.no_grad()
    def take() -> object:
        return policy.velocity(xt, t, embeddings, "behaviour")

    return take


def measure(
    preset: str, overrides: list[str], card: float, repeats: int, clock: Progress
) -> list[tuple[Cell, ...]]:
    """Measure one preset in the memory of a card of `card` GB; return its rows of the table."""
    config = compose([f"preset={preset}", "data.root=.", *overrides])
    size = model_size(config.model)
    assert size is not None
    config = _on_card(config, size, card)
    planned = memory(config, size)
    if torch.cuda.is_available():  # a model is rounded or offloaded after it is drawn
        torch.cuda.set_per_process_memory_fraction(1.0)
    scene = make_micro_batch(config)
    device = scene.policy.device
    if device.type == "cuda":  # what does not fit on the card fails here as well
        torch.cuda.empty_cache()
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, card * 1e9 / whole), device)
    clock.tell(f"{preset}: model made")
    rewards = len(by_aspect(config.rewards))
    drawn, trained = config.rollout.batch_size, len(scene.data.x0)
    jobs: dict[str, tuple[int, Job]] = {
        "velocity of a rollout": (drawn, velocity_job(scene)),
        "training pass": (trained, step_job(scene, rewards)),
        REFRESH: (trained, step_job(scene, rewards, refresh=True)),
    }
    held = _held(device)
    peaks = {part: held + peak_bytes(job, device) for part, (_, job) in jobs.items()}
    seconds = alternate({part: job for part, (_, job) in jobs.items()}, repeats, warm_up=False)
    clock.tell(f"{preset}: measured")
    plan = (planned.frozen + planned.trained + planned.activations) / 2**30
    rows: list[tuple[Cell, ...]] = []
    for part, (images, _) in jobs.items():
        middle = statistics.median(seconds[part])
        planned_peak = plan if part == REFRESH else None
        rows.append((preset, part, float(images), middle, middle / images, peaks[part] / 2**30, planned_peak))
    return rows


def _held(device: torch.device) -> int:
    """Return the bytes that torch's tensors hold on a GPU; 0 on a CPU, where they are not counted."""
    gc.collect()
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def main(arguments: list[str]) -> None:
    """Measure the presets one after another; a preset's model is gone before the next one is made."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.small_cards",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--presets", nargs="+", default=PRESETS, metavar="NAME", help="of conf/preset")
    parser.add_argument("--card", type=float, default=24.0, metavar="GB", help="memory allowed (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument("--output", type=Path, metavar="FILE.md", help="write the table to this file")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="further settings of all presets")
    options = parser.parse_args(arguments)
    command = shlex.join(["python", "-m", "scripts.bench.small_cards", *arguments])
    clock = Progress()
    sheet = Sheet(
        "Presets for small cards",
        f"Medians of {options.repeats} alternating repeats. Peaks are all that torch's tensors hold; the "
        "plan's figure is that of a refresh, with AdamW's moments, which were not there.",
        COLUMNS,
        [],
    )
    for preset in options.presets:
        sheet.rows.extend(measure(preset, options.overrides, options.card, options.repeats, clock))
        if options.json:
            write_json([sheet], command, options.json)
    publish([sheet], command, options.output, None)


if __name__ == "__main__":
    main(sys.argv[1:])
