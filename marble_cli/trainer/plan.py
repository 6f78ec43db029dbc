"""What a run will do and need, told before any weight is loaded: `--dry-run`, and the preflight's memory check."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from marble_cli.balance.registry import build
from marble_cli.config.schema import BalanceMode, RunConfig, SharedTerm
from marble_cli.data.prompts import load_prompts
from marble_cli.errors import RequestError, UnreachableError
from marble_cli.folder import check_writable
from marble_cli.policy.base import ModelSize
from marble_cli.policy.load import model_size, pick_device
from marble_cli.trainer.preflight import check_geometry, check_groups, check_plugins

UTILISATION = 0.7  # share of a large matrix product's speed that a run on `tiny` reached on two CPU cores


@dataclass(frozen=True)
class Geometry:
    """Counts of one step over all processes."""

    images: int
    times: int
    refresh_steps: int

    @property
    def samples(self) -> int:
        return self.images * self.times


def geometry(config: RunConfig) -> Geometry:
    """Batch geometry of `config`."""
    usable = max(1, int(config.rollout.steps * config.trainer.timestep_fraction))
    wanted = config.trainer.times_per_image
    times = usable if wanted is None else min(wanted, usable)
    balance, steps = config.balance, config.trainer.steps
    every = balance.refresh_every if balance.mode is BalanceMode.amortized else 1
    refresh = sum(step <= balance.warmup or (step - 1) % every == 0 for step in range(1, steps + 1))
    return Geometry(config.rollout.groups * config.rollout.group_size, times, refresh)


def memory(config: RunConfig, size: ModelSize) -> int:
    """Bytes of weights, adapters, optimizer state, moving average and the gradients of a refresh; no activations."""
    adapters, moments, average = 2, 2, 1
    gradients = len(config.rewards) + 2
    return size.frozen_bytes + 4 * size.lora * (adapters + moments + average + gradients)


def seconds(config: RunConfig, size: ModelSize, speed: float) -> float:
    """A rough time for the whole run on one process of `speed` FLOP/s, without decoding and rewards.

    A forward pass takes 2 FLOP a parameter and token; a backward pass through frozen weights as much again, and as much
    more for what stands above an adapter.
    """
    counts, balance = geometry(config), config.balance
    forward = 2 * size.transformer * size.tokens
    backward = 2 * forward
    plain = counts.samples * (3 * forward + backward)
    if balance.mode is BalanceMode.output_space:
        further = 2.0 * forward
    else:
        further = (
            balance.refresh_fraction * backward * (1 if balance.shared_term is SharedTerm.outside else 2)
        )
    rollouts = counts.images * config.rollout.steps * forward
    steps = config.trainer.steps
    total = steps * (rollouts + plain) + counts.refresh_steps * counts.samples * further
    return total / speed / config.launcher.nproc


def matmul_speed(device: torch.device) -> float:
    """FLOP/s that a transformer may expect of `device`, from a quick matrix product."""
    side = 1024 if device.type == "cpu" else 8192
    a = torch.randn(side, side, device=device)
    float((a @ a).sum())
    began = time.perf_counter()
    float((a @ a).sum())
    return UTILISATION * 2 * side**3 / (time.perf_counter() - began)


def plan(config: RunConfig) -> None:
    """Check everything that needs no weights and print the plan of a run.

    Raises:
        RequestError: prompts, rewards, balance, geometry or the run's folder are wrong.
        UnreachableError: a reward's server does not answer; the plan is printed first.
    """
    check_geometry(config, config.launcher.nproc)
    prompts = {split: load_prompts(config.data, split) for split in ("train", "test")}
    existing = check_writable(Path(config.run.dir), "run.dir=")
    unreachable = None
    try:
        check_groups(config, check_plugins(config))
    except UnreachableError as error:  # the plan can be told all the same
        unreachable = error
    build(config.balance, list(config.rewards), [reward.weight for reward in config.rewards.values()])
    counts, trainer = geometry(config), config.trainer
    rows: list[tuple[str, str]] = [
        (
            "run",
            f"{config.run.dir} ({shutil.disk_usage(existing).free / 2**30:.0f} GiB free)",
        ),
        ("prompts", ", ".join(f"{name} {len(rows)}" for name, rows in prompts["train"].items())),
        (
            "held out",
            f"{sum(min(trainer.eval_prompts, len(rows)) for rows in prompts['test'].values())} prompts",
        ),
        ("rewards", ", ".join(config.rewards)),
        ("balance", f"{config.balance.name}, {config.balance.mode.value}"),
        ("images a step", f"{config.rollout.groups} prompts x {config.rollout.group_size} = {counts.images}"),
        ("samples a step", f"{counts.images} images x {counts.times} training times = {counts.samples}"),
        ("optimizer steps", f"{trainer.steps}, of which {counts.refresh_steps} refresh the balance"),
        ("a refresh", f"on {_refreshed(config)} micro-batches"),
        ("processes", str(config.launcher.nproc)),
    ]
    size = model_size(config.model)
    device = pick_device(config.model.device)
    if size is None:
        rows.append(("model", f"{config.model.path}: not on this machine, so its sizes are unknown"))
    else:
        spent = seconds(config, size, matmul_speed(device))
        rows += [
            ("model", f"{config.model.path}: {size.transformer:,} parameters, LoRA {size.lora:,}"),
            ("memory", f"{memory(config, size) / 2**20:,.0f} MiB a process, and activations"),
            ("time", f"about {_duration(spent)} on {device}, and decoding and rewards"),
        ]
    table = Table(box=None, show_header=False, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console(markup=False).print(table)
    if unreachable is not None:
        raise unreachable


def _refreshed(config: RunConfig) -> str:
    """How many of a step's micro-batches on each process take the rewards apart."""
    counts, size = geometry(config), config.trainer.micro_batch_size
    parts = counts.times * -(-counts.images // config.launcher.nproc // size)
    return f"{max(1, round(config.balance.refresh_fraction * parts))} of {parts}"


def _duration(spent: float) -> str:
    hours, minutes = divmod(round(spent / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{max(1, minutes)} min"


def check_memory(config: RunConfig, device: torch.device) -> None:
    """The frozen model, adapters and gradients fit into what the device has free.

    Raises:
        RequestError: they do not.
    """
    size = model_size(config.model)
    free = free_memory(device)
    if size is None or free is None or memory(config, size) <= free:
        return
    raise RequestError(
        f"the run needs about {memory(config, size) / 2**30:.1f} GiB on {device} besides activations, and "
        f"{free / 2**30:.1f} GiB are free. Lower model.lora.rank, use model.precision=bf16, or free the device."
    )


def free_memory(device: torch.device) -> int | None:
    """Free bytes on `device`; of the machine's memory for a CPU, None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    info = Path("/proc/meminfo")
    if not info.is_file():
        return None
    rows: dict[str, Any] = dict(line.split(":") for line in info.read_text().splitlines())
    return int(rows["MemAvailable"].split()[0]) * 1024
