"""Estimate a run's device memory before loading, and refuse a run that cannot fit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from marble_cli.config.aspects import by_aspect
from marble_cli.config.checks.balance import MIXTURES
from marble_cli.config.counts import geometry, per_process, processes
from marble_cli.config.enums import (
    Offload,
    OptimizerName,
    Parallel,
    Precision,
    RefreshWhen,
    Switch,
    Train,
)
from marble_cli.config.evaluation import resolve_evaluation
from marble_cli.config.schema import ModelConfig, RunConfig
from marble_cli.errors import RequestError
from marble_cli.policy.model_size import ModelSize
from marble_cli.policy.quantization import BYTES, KEEP_COPIES
from marble_cli.policy.source import DTYPES

FLOAT32 = 4  # bytes
# Bytes per trained weight of both moments; in 8 bits, every 256 values share a scale in float32.
MOMENTS = {OptimizerName.adamw: 2.0 * FLOAT32, OptimizerName.adamw8bit: 2 * (1 + FLOAT32 / 256)}
# Blocks on the device at a time with model.offload=blocks: one computes, and the next one is copied.
RESIDENT_BLOCKS = 2
OFFLOADED = "with model.offload=blocks a block is copied again for its backward pass"
# What a device needs besides: temporary tensors and fragments, as a share, and its own context and libraries.
SHARE_BESIDES, BYTES_BESIDES = 0.1, 2**30
SHARE_OF_FREE = 0.8  # of the CPU's memory, which a copy of a checkpoint may take
GROUPS, OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")  # of Linux, version 2


@dataclass(frozen=True)
class Memory:
    """Bytes on each process's device.

    Attributes:
        frozen: frozen weights, including the text encoders if they stay on the device.
        trained: trained and behaviour weights, AdamW's moments, moving average and the gradients of a
            refresh.
        activations: activations of a micro-batch, roughly.
        drawing: a batch of a rollout or an evaluation, while its velocities are computed or it is decoded.
        encoders: text encoders while prompts are encoded into the cache; 0 if they stay on the device.
        neighbours: reward models and NCCL's buffers (`plan.neighbours`).
        offloaded: frozen weights in the CPU's memory instead, besides those of blocks that are computing.
    """

    frozen: int
    trained: int
    activations: int
    encoders: int
    neighbours: int = 0
    offloaded: int = 0
    drawing: int = 0

    @property
    def least(self) -> int:
        """Bytes that the run needs at any batch size."""
        return self.neighbours + self.frozen + max(self.trained, self.encoders)

    @property
    def peak(self) -> int:
        """Bytes that the run needs, with what a device needs besides."""
        most = self.frozen + max(self.trained + max(self.activations, self.drawing), self.encoders)
        return round((1 + SHARE_BESIDES) * most) + BYTES_BESIDES + self.neighbours


def memory(
    config: RunConfig,
    size: ModelSize,
    neighbours: int = 0,
    *,
    device: str | None = "cuda",
    counted: bool = True,
) -> Memory:
    """Estimate the bytes that `config` needs on every process's device, `neighbours` of them of others.

    What one sample keeps in a training pass is counted (`policy.cost`), which takes seconds of a large model,
    or with `counted=False` a bound that it stays well below. How many pictures are decoded at once depends on
    the kind of `device`; with None, drawing is left out.

    Training float32 weights in half precision also keeps half-precision copies of them. With
    trainer.parallel=fsdp, a process holds its own shard and the blocks that it has gathered: two, or all of
    them if they are kept for the backward pass. A refresh keeps the rewards' gradients of a LoRA unsharded,
    two for each with balance.refresh_when=stale, and that of a mixture. With model.offload=blocks, two of the
    transformer's blocks are on the device, and all in the CPU's memory.
    """
    weights, average, moments = 2, 1, MOMENTS[config.optimizer.name] / FLOAT32
    model, full, fsdp = config.model, config.model.train is Train.full, config.trainer.fsdp
    shards, gathered = 1, 0
    transformer = _stored(size.network, size.rounded, model)
    if config.trainer.parallel is Parallel.fsdp:
        shards = processes(config.launcher) // fsdp.replicas
        gathered = min(2, size.blocks) * transformer // size.blocks if fsdp.reshard else transformer
    halves = 2 if config.balance.refresh_when is RefreshWhen.stale else 1
    gradients = halves * len(by_aspect(config.rewards)) + (config.balance.name in MIXTURES)
    unsharded = 0 if full else gradients
    sharded = weights + moments + average + gradients + 2 - unsharded
    offloaded = 0
    if model.offload is Offload.blocks:
        offloaded = _stored(size.in_blocks, 0, model)
        resident = min(RESIDENT_BLOCKS, size.blocks) * _stored(size.largest_block, 0, model)
        transformer += resident - offloaded
    encoders = _stored(size.encoders, size.encoders_rounded, model)
    cached = model.embedding_cache is not None
    return Memory(
        frozen=_stored(size.vae, 0, model) + transformer // shards + gathered + (0 if cached else encoders),
        trained=round(FLOAT32 * size.trained * (unsharded + sharded / shards)),
        activations=_activations(config, size, copies=full and shards == 1, counted=counted),
        encoders=encoders if cached else 0,
        neighbours=neighbours,
        offloaded=offloaded,
        drawing=0 if device is None else _drawing(config, size, device),
    )


def _stored(parameters: int, rounded: int, model: ModelConfig) -> int:
    """Return the bytes of frozen parameters, of which quantisation rounds some."""
    itemsize = DTYPES[model.precision].itemsize
    return round(parameters * itemsize - rounded * (itemsize - BYTES.get(model.quantization, itemsize)))


def _drawing(config: RunConfig, size: ModelSize, device: str) -> int:
    """Return the most bytes that a rollout or an evaluation takes to draw a batch."""
    images = per_process(geometry(config).images, processes(config.launcher))
    drawn = size.drawing.peak(min(config.rollout.batch_size, images), device)
    if not config.trainer.eval_every:
        return drawn
    return max(drawn, size.judged.peak(resolve_evaluation(config).batch_size, device))


def _activations(config: RunConfig, size: ModelSize, *, copies: bool, counted: bool) -> int:
    """Return the bytes that a micro-batch keeps; `copies` of trained weights are in half precision."""
    model = config.model
    images = per_process(geometry(config).images, processes(config.launcher))
    batch = min(config.trainer.micro_batch_size, images)
    copied = size.rounded * DTYPES[model.precision].itemsize if model.quantization in KEEP_COPIES else 0
    if model.gradient_checkpointing is Switch.true:
        kept = batch * (size.cost.kept_checkpointed if counted else size.most_kept) + copied // size.blocks
    else:
        kept = batch * (size.cost.kept if counted else size.most_kept) + copied
    return kept + (2 * size.trained if copies and model.precision is not Precision.fp32 else 0)


@dataclass(frozen=True)
class Checkpointing:
    """Whether activations are computed again in backward passes, and why if `auto` left that open."""

    on: bool
    reason: Callable[[], str] | None = None  # its figures are counted where it is printed

    def __str__(self) -> str:
        text = "activations are computed again in backward passes" if self.on else "activations are kept"
        return text if self.reason is None else f"{text} (model.gradient_checkpointing=auto: {self.reason()})"

    def applied(self, config: RunConfig) -> RunConfig:
        """Return the configuration with `model.gradient_checkpointing` decided."""
        choice = Switch.true if self.on else Switch.false
        return replace(config, model=replace(config.model, gradient_checkpointing=choice))


def choose_checkpointing(
    config: RunConfig, size: ModelSize | None, device: torch.device, neighbours: int = 0
) -> Checkpointing:
    """Return what `model.gradient_checkpointing` means for a run; `auto` saves memory if it must."""
    choice = config.model.gradient_checkpointing
    if choice is not Switch.auto:
        return Checkpointing(choice is Switch.true)
    if config.model.offload is Offload.blocks:
        return Checkpointing(True, lambda: OFFLOADED)
    free = free_memory(device)
    if size is None or free is None:
        return Checkpointing(False, lambda: "the model's sizes or the device's memory are unknown")
    kept = Checkpointing(False).applied(config)

    def training(*, counted: bool = True) -> int:
        return memory(kept, size, neighbours, device=None, counted=counted).peak

    on = training(counted=False) > free and training() > free

    def explain() -> str:
        sums = f"kept, training needs about {describe_bytes(training())}"
        return f"{sums}, {'more than' if on else 'within'} the {describe_bytes(free)} free on {device}"

    return Checkpointing(on, explain)


def check_memory(
    config: RunConfig, size: ModelSize | None, device: torch.device, neighbours: int = 0
) -> None:
    """Check that all but activations fits into the free memory of the device.

    Offloaded weights must fit into the CPU's memory, once per process of this machine.

    Raises:
        RequestError: they do not fit; the message says what to lower.
    """
    if size is None:
        return
    needed = memory(config, size, neighbours, device=None, counted=False)
    hosted = needed.offloaded * config.launcher.nproc
    host = free_memory(torch.device("cpu")) if hosted else None
    if host is not None and hosted > host:
        raise RequestError(
            f"model.offload=blocks keeps {describe_bytes(hosted)} of weights in the CPU's memory, for "
            f"launcher.nproc={config.launcher.nproc}, and {describe_bytes(host)} are free there. Free some, "
            "start fewer processes per machine, or use model.quantization with model.offload=none."
        )
    free = free_memory(device)
    if free is None or needed.least <= free:
        return
    smaller = "Train a LoRA (model.train=lora)"
    if config.model.train is Train.lora:
        smaller = "Set model.quantization or model.offload=blocks, lower model.lora.rank"
    if needed.offloaded:
        smaller = "Lower model.lora.rank"
    elsewhere = "have rewards compute elsewhere (rewards.<name>.device=cpu or .url), " if neighbours else ""
    raise RequestError(
        f"the run needs about {describe_bytes(needed.least)} on {device} besides activations, and "
        f"{describe_bytes(free)} are free. {smaller}, share it among more processes "
        f"(trainer.parallel=fsdp), use model.precision=bf16, set model.embedding_cache, {elsewhere}or free "
        "the device."
    )


def describe(needed: Memory, micro_batch_size: int) -> str:
    """Describe the memory estimate in one line."""
    parts = [
        f"{describe_bytes(needed.frozen)} of frozen weights",
        f"{describe_bytes(needed.trained)} of trained weights, moments and gradients",
        f"about {describe_bytes(needed.activations)} of activations "
        f"(trainer.micro_batch_size={micro_batch_size}), "
        f"or {describe_bytes(needed.drawing)} while images are drawn",
    ]
    if needed.offloaded:
        parts.append(f"{describe_bytes(needed.offloaded)} of blocks in the CPU's memory")
    if needed.encoders:
        parts.append(f"{describe_bytes(needed.encoders)} of text encoders, while prompts are encoded")
    return "per process: " + "; ".join(parts)


def describe_bytes(count: int) -> str:
    """Write a number of bytes in GiB, or in MiB if it is below one."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def free_memory(device: torch.device) -> int | None:
    """Return the free bytes on `device`, for a CPU those that this process may take; None if not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    info = Path("/proc/meminfo")
    if not info.is_file():
        return None
    rows: dict[str, Any] = dict(line.split(":") for line in info.read_text().splitlines())
    return min([int(rows["MemAvailable"].split()[0]) * 1024, *_free_in_groups()])


def copy_fits(size: int) -> bool:
    """Tell whether the CPU's free memory may hold a copy of `size` bytes while it is written to the disk."""
    free = free_memory(torch.device("cpu"))
    return free is None or size <= SHARE_OF_FREE * free


def _free_in_groups() -> Iterator[int]:
    """Yield what each control group leaves free: a container and a job of SLURM may have limits."""
    own = next((line for line in _lines(OWN_GROUP) if line.startswith("0::")), "0::/")
    folder = GROUPS / own.removeprefix("0::").lstrip("/")
    for group in (folder, *folder.parents):
        limit, used = _lines(group / "memory.max"), _lines(group / "memory.current")
        if limit and used and limit[0].isdigit():
            stat = dict(line.split() for line in _lines(group / "memory.stat"))
            yield int(limit[0]) - int(used[0]) + int(stat.get("inactive_file", 0))  # of files: can be dropped


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
