"""Describe a run, its steps and its model line by line, for the first table of its plan."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from marble_cli.checkpoint import manifest
from marble_cli.config.aspects import by_aspect
from marble_cli.config.counts import geometry, micro_batches, processes
from marble_cli.config.enums import Parallel, RefreshWhen, Role, Train
from marble_cli.config.evaluation import resolve_evaluation
from marble_cli.config.schema import RewardConfig, RunConfig
from marble_cli.config.scored import scored_rewards
from marble_cli.config.trainer import TrainerConfig
from marble_cli.plan.findings import Findings
from marble_cli.plan.forecast import checkpoints, fetched_into
from marble_cli.plan.groups import images_together
from marble_cli.plan.memory import choose_checkpointing, describe, describe_bytes, memory
from marble_cli.plan.mixture import Kind, kind_shares, typical_groups
from marble_cli.plan.neighbours import Neighbours
from marble_cli.plan.processes import describe_processes
from marble_cli.plan.videos import describe_videos
from marble_cli.plan.work import COPY_SPEED, copying_seconds, matmul_speed, refreshed, seconds
from marble_cli.policy.compilation import choose_compilation
from marble_cli.policy.model_size import ModelSize
from marble_cli.policy.source import DTYPES

Line = tuple[str, str]  # what is described, or nothing where a line belongs to the one before; its text


@dataclass(frozen=True)
class Division:
    """How the images of a typical step divide.

    Attributes:
        shares: of each kind in all images.
        groups: of each kind in a step.
        together: neighbouring images that stay on one process.
    """

    shares: Mapping[Kind, float]
    groups: list[int]
    together: int


def divide(config: RunConfig, found: Findings) -> Division:
    """Find the kinds of images, the groups of each, and the images that rewards need together."""
    shares = kind_shares(config.data.sources, found.prompts.get("train", {}), config.model.resolution)
    groups = typical_groups(config.rollout.groups, shares.values())
    scored = [found.declarations[name] for name in scored_rewards(config) if name in found.declarations]
    return Division(shares, groups, images_together(config.rollout, scored))


def run_lines(config: RunConfig, found: Findings) -> list[Line]:
    """Describe where a run begins and what it is judged and trained on."""
    free = shutil.disk_usage(found.existing).free / 2**30
    begins = (
        f"after step {manifest.read(found.checkpoint).step}: {found.checkpoint}"
        if found.checkpoint
        else "at step 1"
    )
    rewards = by_aspect(config.rewards)
    guards = _guards(rewards)
    return [
        ("run", f"{config.run.dir} ({free:.0f} GiB free)"),
        ("begins", begins),
        *([("starts from", found.start.target.label)] if found.start else []),
        ("evaluated on", _evaluation(config)),
        ("rewards", ", ".join(name for name, reward in rewards.items() if reward.role is Role.train)),
        *([("guards", guards)] if guards else []),
        ("balance", f"{config.balance.name}, {config.balance.mode.value}"),
    ]


def step_lines(config: RunConfig, found: Findings, division: Division) -> list[Line]:
    """Describe the images, samples and micro-batches of a step, and who computes and records them."""
    counts, rollout = geometry(config), config.rollout
    kinds = _kinds(division.shares, config.model.resolution)
    most = "at most " if config.balance.refresh_when is RefreshWhen.stale else ""
    parts = micro_batches(config, division.together, division.groups)
    images = f"{rollout.groups} prompts x {rollout.group_size} = {counts.images}"
    samples = f"{counts.trained} images x {counts.times} training times = {counts.samples}"
    steps = f"{config.trainer.steps}, of which {most}{counts.refresh_steps} refresh the balance"
    wandb = "; ".join([str(found.wandb), *found.wandb.ignored]) if found.wandb else ""
    return [
        ("images per step", images),
        *([("of sizes", kinds)] if kinds else []),
        ("samples per step", samples),
        ("optimizer steps", steps),
        ("a refresh", f"on {refreshed(config, parts)} of {parts} micro-batches"),
        ("processes", describe_processes(config, division.together, division.groups)),
        ("the network", _layout(config.trainer, processes(config.launcher))),
        ("trackers", ", ".join(config.logging.trackers) or "none"),
        *([("W&B", wandb)] if wandb else []),
    ]


def model_lines(
    config: RunConfig,
    size: ModelSize | None,
    device: torch.device,
    neighbours: Neighbours,
    existing: Path,
    division: Division,
) -> list[Line]:
    """Describe a model, its memory on `device`, its checkpoints below `existing`, and the time of the run.

    Raises:
        RequestError: not even one checkpoint fits, or a model cannot be fetched into its folder.
    """
    cache = fetched_into(config.model)
    fetched = [] if cache is None else [("to be fetched into", cache)]
    path = config.model.path
    if size is None:
        return [*fetched, ("model", f"{path}: not on this machine, so its sizes are unknown")]
    checkpointing = choose_checkpointing(config, size, device, neighbours.total)
    config = checkpointing.applied(config)
    needed = memory(config, size, neighbours.total, device=device.type)
    less = "; compiled, less" if choose_compilation(config.model.compile, device).on else ""
    speed = matmul_speed(device, DTYPES[config.model.precision])
    spent = seconds(config, size, speed, division.together, division.groups)
    videos = describe_videos(config, size)
    return [
        *fetched,
        ("model", f"{path}: {size.network:,} parameters, {_trained(config.model.train, size)}"),
        *([("videos", videos)] if videos else []),
        ("memory", describe(needed, config.trainer.micro_batch_size)),
        ("", f"beside the model: {neighbours}"),
        ("", f"about {describe_bytes(needed.peak)} in all, with temporary tensors{less}"),
        ("", str(checkpointing)),
        ("checkpoints", checkpoints(config, size, existing)),
        ("time", f"about {_duration(spent)} on {device}, and decoding and rewards"),
        *([("", _copies(config, needed.offloaded, division))] if needed.offloaded else []),
    ]


def _guards(rewards: Mapping[str, RewardConfig]) -> str:
    """List the guards, each with its margin, if it has one."""
    guards = {name: reward for name, reward in rewards.items() if reward.role is Role.guard}
    return ", ".join(
        f"{name} with margin {reward.margin:g}" if reward.margin else name for name, reward in guards.items()
    )


def _evaluation(config: RunConfig) -> str:
    own = resolve_evaluation(config)
    images = "" if own.images_per_prompt == 1 else f" x {own.images_per_prompt} images"
    size = "" if own.resolution == config.model.resolution else f", {own.resolution} pixels"
    prompts = f"the first {own.prompts} held-out prompts of each source{images}"
    return f"{prompts}, {own.steps} steps of {own.solver.value}{size}"


def _kinds(shares: Mapping[Kind, float], default: int | str) -> str:
    """List the kinds of images; nothing if all have the size `default` and at most one picture."""
    several = max(pictures for _, pictures in shares) > 1
    if not several and {size for size, _ in shares} == {default}:
        return ""
    ends = {count: f" from {count} picture" + "s" * (count > 1) if several else "" for _, count in shares}
    return ", ".join(f"{size}{ends[count]} ({share:.0%})" for (size, count), share in shares.items())


def _layout(trainer: TrainerConfig, processes: int) -> str:
    if trainer.parallel is Parallel.ddp:
        return "whole on each process"
    replicas = trainer.fsdp.replicas
    shards = processes // replicas
    copies = f"{replicas} copies, each " if replicas > 1 else ""
    return f"{copies}in shards over {shards} processes"


def _trained(train: Train, size: ModelSize) -> str:
    return "all trained" if train is Train.full else f"LoRA {size.trained:,}"


def _copies(config: RunConfig, offloaded: int, division: Division) -> str:
    """Describe what model.offload=blocks copies, and the time if none of it hides behind computing."""
    spent = _duration(copying_seconds(config, offloaded, division.together, division.groups))
    each = f"{describe_bytes(offloaded)} are copied to the GPU in every pass over a batch"
    return f"{each}: {COPY_SPEED / 1e9:.0f} GB/s (PCIe 4.0) take {spent}, beside computing"


def _duration(spent: float) -> str:
    hours, minutes = divmod(round(spent / 60), 60)
    if hours >= 48:
        return f"{hours / 24:,.0f} days"
    return f"{hours} h {minutes} min" if hours else f"{max(1, minutes)} min"
