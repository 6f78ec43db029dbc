"""Print what a run will do and need before any weight is loaded: `--dry-run`."""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from marble_cli.balance.registry import build_for
from marble_cli.checkpoint.resume import find_checkpoint
from marble_cli.checkpoint.step_folders import step_of
from marble_cli.config.aspects import by_aspect, reward_keys
from marble_cli.config.counts import (
    geometry,
    images_per_process,
    micro_batches,
    processes,
    trained_images,
)
from marble_cli.config.enums import Parallel, RefreshWhen, Role, Switch, Train
from marble_cli.config.evaluation import resolve_evaluation
from marble_cli.config.schema import RewardConfig, RunConfig, SourceConfig
from marble_cli.config.scored import scored_rewards
from marble_cli.config.trainer import TrainerConfig
from marble_cli.data.condition_checks import check_conditions
from marble_cli.data.prompts import Prompt, find_root_fault, load_prompts
from marble_cli.errors import UnreachableError
from marble_cli.evaluate.start import read_start
from marble_cli.files import RUN_ENTRIES, check_inside, check_writable
from marble_cli.lock import RunLock
from marble_cli.plan.cards import tabulate_cards
from marble_cli.plan.checks import (
    applicable,
    check_applicable,
    check_cache,
    check_geometry,
    check_packages,
    check_plugins,
    check_trackers,
    trained_on,
    with_declarations,
)
from marble_cli.plan.forecast import checkpoints, fetched_into, unsound
from marble_cli.plan.groups import check_groups, images_together
from marble_cli.plan.memory import choose_checkpointing, describe, describe_bytes, memory
from marble_cli.plan.mixture import Kind, kind_shares, mixed_size, typical_groups
from marble_cli.plan.neighbours import find_neighbours
from marble_cli.plan.processes import describe_processes
from marble_cli.plan.videos import describe_videos
from marble_cli.plan.work import COPY_SPEED, add_passes, copying_seconds, refreshed
from marble_cli.policy.compilation import choose_compilation
from marble_cli.policy.files import check_files
from marble_cli.policy.load import pick_device
from marble_cli.policy.model_size import ModelSize
from marble_cli.policy.source import DTYPES, count_pictures
from marble_cli.rewards.api import Declaration
from marble_cli.rewards.worker import required
from marble_cli.rollout.sizes import check_sizes

# Share of the speed of a large matrix product that a run of `preset=tiny` reached on two CPU cores.
UTILISATION = 0.7


def seconds(
    config: RunConfig, size: ModelSize, speed: float, together: int = 1, groups: Sequence[int] = ()
) -> float:
    """Estimate the seconds of the whole run at `speed` FLOP/s per process, without decoding and rewards.

    A process draws and trains on its share of the images, padding included; `together` are the neighbouring
    images that stay on one process, and `groups` a step's groups of each size. Forward and backward passes
    were counted (`policy.cost`); gradient checkpointing computes a forward pass again in each backward pass.
    """
    backward = size.cost.backward
    if config.model.gradient_checkpointing is Switch.true:
        backward += size.cost.forward
    images = sum(images_per_process(config, together, groups))
    parts = micro_batches(config, together, groups)
    samples = trained_images(config, images) * geometry(config).times
    return add_passes(config, images, samples, parts, size.cost.forward, backward) / speed


def matmul_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the FLOP/s that a transformer may reach on `device` in `dtype`, by a quick matrix product."""
    side = 1024 if device.type == "cpu" else 8192
    a = torch.randn(side, side, device=device, dtype=dtype)
    float((a @ a).sum())
    began = time.perf_counter()
    float((a @ a).sum())
    return UTILISATION * 2 * side**3 / (time.perf_counter() - began)


def plan(config: RunConfig, resume: str = "auto") -> None:
    """Check everything that needs no weights, and print the plan of a run.

    Raises:
        RequestError: prompts, rewards, balance, geometry or the run's folder are wrong, or the folder holds
            another run.
        UnreachableError: a reward's server does not answer; the plan is printed before this is raised.
    """
    check_geometry(config.rollout, config.trainer, processes(config.launcher))
    unset = find_root_fault(config.data) if config.data.root is None else None
    prompts = {} if unset else {split: load_prompts(config.data, split) for split in ("train", "test")}
    every = [prompt for split in prompts.values() for rows in split.values() for prompt in rows]
    check_conditions(every, config.model.path, *count_pictures(config.model, fetch=False))
    check_sizes(every, config.model, fetch=False)
    folder = Path(config.run.dir)
    existing = check_writable(folder, "run.dir=")
    check_inside(folder, RUN_ENTRIES)
    RunLock(folder).check()
    checkpoint = find_checkpoint(folder, config, resume)
    check_packages(config)
    check_cache(config.model)
    check_files(config.model)
    start = read_start(config) if checkpoint is None else None
    declarations: dict[str, Declaration] = {}
    unreachable = None
    try:
        declarations = check_plugins({**config.rewards, **config.eval_rewards}, reward_keys(config))
        check_groups(config, declarations)
    except UnreachableError as error:  # most of the plan can be printed without the server
        unreachable = error
    rewards = by_aspect(config.rewards)
    build_for(config.balance, rewards)
    most = "at most " if config.balance.refresh_when is RefreshWhen.stale else ""
    scored = [declarations[name] for name in scored_rewards(config) if name in declarations]
    together = images_together(config.rollout, scored)
    counts, trainer, figures = geometry(config), config.trainer, check_trackers(config.logging)
    shares = kind_shares(config.data.sources, prompts.get("train", {}), config.model.resolution)
    groups = typical_groups(config.rollout.groups, shares.values())
    parts = micro_batches(config, together, groups)
    rows: list[tuple[str, str]] = [
        ("run", f"{config.run.dir} ({shutil.disk_usage(existing).free / 2**30:.0f} GiB free)"),
        ("begins", f"after step {step_of(checkpoint)}: {checkpoint}" if checkpoint else "at step 1"),
        *([("starts from", start.target.label)] if start else []),
        ("evaluated on", _evaluation(config)),
        ("rewards", ", ".join(name for name, reward in rewards.items() if reward.role is Role.train)),
        *([("guards", guards)] if (guards := _guards(rewards)) else []),
        ("balance", f"{config.balance.name}, {config.balance.mode.value}"),
        (
            "images per step",
            f"{config.rollout.groups} prompts x {config.rollout.group_size} = {counts.images}",
        ),
        *([("of sizes", kinds)] if (kinds := _kinds(shares, config.model.resolution)) else []),
        ("samples per step", f"{counts.trained} images x {counts.times} training times = {counts.samples}"),
        ("optimizer steps", f"{trainer.steps}, of which {most}{counts.refresh_steps} refresh the balance"),
        ("a refresh", f"on {refreshed(config, parts)} of {parts} micro-batches"),
        ("processes", describe_processes(config, together, groups)),
        ("the network", _layout(config.trainer, processes(config.launcher))),
        ("trackers", ", ".join(config.logging.trackers) or "none"),
        *([("W&B", "; ".join([str(figures), *figures.ignored]))] if figures else []),
    ]
    size = mixed_size(config.model, shares, config.evaluation.resolution)
    device = pick_device(config.model.device)
    neighbours = find_neighbours(config, declarations, device)
    if (cache := fetched_into(config.model)) is not None:
        rows.append(("to be fetched into", cache))
    if size is None:
        rows.append(("model", f"{config.model.path}: not on this machine, so its sizes are unknown"))
    else:
        checkpointing = choose_checkpointing(config, size, device, neighbours.total)
        config = checkpointing.applied(config)
        needed = memory(config, size, neighbours.total, device=device.type)
        less = "; compiled, less" if choose_compilation(config.model.compile, device).on else ""
        speed = matmul_speed(device, DTYPES[config.model.precision])
        spent = seconds(config, size, speed, together, groups)
        rows += [
            (
                "model",
                f"{config.model.path}: {size.network:,} parameters, {_trained(config.model.train, size)}",
            ),
            *([("videos", videos)] if (videos := describe_videos(config, size)) else []),
            ("memory", describe(needed, trainer.micro_batch_size)),
            ("", f"beside the model: {neighbours}"),
            ("", f"about {describe_bytes(needed.peak)} in all, with temporary tensors{less}"),
            ("", str(checkpointing)),
            ("checkpoints", checkpoints(config, size, existing)),
            ("time", f"about {_duration(spent)} on {device}, and decoding and rewards"),
            *([("", _copies(config, needed.offloaded, together, groups))] if needed.offloaded else []),
        ]
    table = Table("", box=None, show_header=False, pad_edge=False)
    table.add_column(overflow="fold")  # a path longer than a line stays whole
    for row in rows:
        table.add_row(*row)
    console = Console(markup=False)
    console.print(table, "")
    if size is not None:
        card = device if device.type == "cuda" else torch.device("cuda:0")
        console.print(tabulate_cards(config, size, find_neighbours(config, declarations, card).total))
        console.print(
            "Largest trainer.micro_batch_size without / with gradient checkpointing; -: does not fit.\n"
        )
    if unset:
        console.print(f"No prompts yet: {unset}")
    else:
        console.print(_sources(config.data.sources, config.rollout.groups, prompts), "")
    if unreachable is not None:
        raise unreachable
    if not unset:
        console.print(_rewards(config, declarations, prompts), "")
        check_applicable(config, declarations, prompts["train"], prompts["test"])
        for line in unsound(config, declarations, prompts):
            console.print(line, soft_wrap=True)


def _sources(
    sources: Mapping[str, SourceConfig], groups: int, prompts: Mapping[str, Mapping[str, list[Prompt]]]
) -> Table:
    """Tabulate each source: its prompts, and its share of a step's prompts."""
    table = Table("source", box=None, pad_edge=False)
    for heading in ("prompts", "held out", "share", "prompts per step"):
        table.add_column(heading, justify="right")
    total = sum(source.weight for source in sources.values())
    for name, source in sources.items():
        counts = [f"{len(prompts[split][name]):,}" for split in ("train", "test")]
        share = source.weight / total
        table.add_row(name, *counts, f"{share:.0%}", f"{share * groups:.3g}")
    return table


def _rewards(
    config: RunConfig,
    declarations: Mapping[str, Declaration],
    prompts: Mapping[str, Mapping[str, list[Prompt]]],
) -> Table:
    """Tabulate the metadata that each reward requires and the prompts that it applies to.

    Rewards that are watched and not trained on see held-out prompts only.
    """
    table = Table("reward", "requires", "applies to", box=None, pad_edge=False)
    trained = trained_on(config.data.sources, prompts["train"])
    for rewards, asked, kind in (
        (config.rewards, trained, "prompts"),
        (config.eval_rewards, prompts["test"], "held-out prompts"),
    ):
        for name, reward, declaration in with_declarations(rewards, declarations):
            applied = applicable(reward, declaration, asked)
            counts = {source: count for source, count in applied.items() if count}
            where = f" ({', '.join(counts)})" if 0 < len(counts) < len(asked) else ""
            keys = ", ".join(required(reward, declaration))
            every = sum(map(len, asked.values()))
            condition = f", if {reward.only_if}" if reward.only_if else ""
            applies = f"{sum(counts.values()):,} of {every:,} {kind}{where}{condition}"
            table.add_row(name, keys or "nothing", applies)
    return table


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


def _copies(config: RunConfig, offloaded: int, together: int, groups: Sequence[int]) -> str:
    """Describe what model.offload=blocks copies, and the time if none of it hides behind computing."""
    spent = _duration(copying_seconds(config, offloaded, together, groups))
    each = f"{describe_bytes(offloaded)} are copied to the GPU in every pass over a batch"
    return f"{each}: {COPY_SPEED / 1e9:.0f} GB/s (PCIe 4.0) take {spent}, beside computing"


def _duration(spent: float) -> str:
    hours, minutes = divmod(round(spent / 60), 60)
    if hours >= 48:
        return f"{hours / 24:,.0f} days"
    return f"{hours} h {minutes} min" if hours else f"{max(1, minutes)} min"
