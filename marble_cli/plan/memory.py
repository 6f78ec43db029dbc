"""What a run needs of its device's memory, known before anything is loaded, and what to lower where it runs out."""

import errno
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from marble_cli.config.counts import geometry, processes
from marble_cli.config.schema import Parallel, Precision, RunConfig, Train
from marble_cli.errors import DeviceMemoryError, RequestError
from marble_cli.policy.base import ModelSize
from marble_cli.policy.size import model_size
from marble_cli.policy.source import DTYPES


@dataclass(frozen=True)
class Memory:
    """Bytes on each process's device: what stays there, and what comes and goes.

    `frozen` weights, the text encoders' where they stay; `trained`: trained and behaviour weights, AdamW's moments, the moving
    average and the gradients of a refresh; `activations` of a micro-batch, roughly; `encoders` while prompts are encoded into the cache.
    """

    frozen: int
    trained: int
    activations: int
    encoders: int

    @property
    def least(self) -> int:
        """What the run cannot do without, whatever its batch sizes."""
        return max(self.frozen + self.trained, self.frozen + self.encoders)


def memory(config: RunConfig, size: ModelSize) -> Memory:
    """What `config` needs of every process's device.

    A training pass keeps about two bytes for each output of the blocks' linear layers and each token; with gradient
    checkpointing the blocks' inputs and what one block keeps (docs/explanation/algorithm.md). Float32 weights make float32 of some
    activations, about half as much again, and leave their half-precision copies behind. Of shards (trainer.parallel=fsdp) a
    process holds its own and, while it computes, what it has gathered: two blocks, or all where they are kept for the
    backward pass. A refresh sums the rewards' gradients of a LoRA whole.
    """
    weights, moments, average = 2, 2, 1
    full, fsdp = config.model.train is Train.full, config.trainer.fsdp
    shards, gathered = 1, 0
    transformer = size.transformer * DTYPES[config.model.precision].itemsize
    if config.trainer.parallel is Parallel.fsdp:
        shards = processes(config) // fsdp.replicas
        gathered = min(2, size.blocks) * transformer // size.blocks if fsdp.reshard else transformer
    whole = 0 if full else len(config.rewards)  # gradients
    parts = weights + moments + average + len(config.rewards) + 2 - whole
    batch = min(config.trainer.micro_batch_size, geometry(config).images // processes(config))
    kept = 2 * batch * (size.tokens + config.model.max_sequence_length) * size.features
    if full:
        kept = 3 * kept // 2 + (
            2 * size.trained if shards == 1 and config.model.precision is not Precision.fp32 else 0
        )
    if config.model.gradient_checkpointing:
        kept = 2 * kept // size.blocks
    cached = config.model.embedding_cache is not None
    return Memory(
        size.frozen_bytes
        - transformer
        + transformer // shards
        + gathered
        + (0 if cached else size.encoder_bytes),
        4 * size.trained * whole + 4 * size.trained * parts // shards,
        kept,
        size.encoder_bytes if cached else 0,
    )


def check_memory(config: RunConfig, device: torch.device) -> None:
    """The frozen model, trained weights and gradients fit into what the device has free.

    Raises:
        RequestError: they do not.
    """
    size = model_size(config.model)
    free = free_memory(device)
    if size is None or free is None or (needed := memory(config, size).least) <= free:
        return
    smaller = (
        "Lower model.lora.rank" if config.model.train is Train.lora else "Train a LoRA (model.train=lora)"
    )
    raise RequestError(
        f"the run needs about {_bytes(needed)} on {device} besides activations, and {_bytes(free)} are free. {smaller}, "
        "share it among more processes (trainer.parallel=fsdp), use model.precision=bf16, set model.embedding_cache, or free the "
        "device."
    )


def describe(needed: Memory, config: RunConfig) -> str:
    """The memory plan in words."""
    parts = [
        f"{_bytes(needed.frozen)} of frozen weights",
        f"{_bytes(needed.trained)} of trained weights, moments and gradients",
        f"about {_bytes(needed.activations)} of activations (trainer.micro_batch_size={config.trainer.micro_batch_size})",
    ]
    if needed.encoders:
        parts.append(f"{_bytes(needed.encoders)} of text encoders, while prompts are encoded")
    return "a process: " + "; ".join(parts)


def _bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def free_memory(device: torch.device) -> int | None:
    """Free bytes on `device`; of the machine's memory for a CPU, None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    info = Path("/proc/meminfo")
    if not info.is_file():
        return None
    rows: dict[str, Any] = dict(line.split(":") for line in info.read_text().splitlines())
    return int(rows["MemAvailable"].split()[0]) * 1024


# What backends say when memory has run out and torch has no error of its own for it.
SHORTAGES = re.compile(
    r"""
      (CUDA|HIP|XPU|MPS\ backend)\ out\ of\ memory        # the allocators, also where a compiler repeats them
    | (CUDA|HIP)\ (driver\ )?error:\ out\ of\ memory       # beside the allocator: a context, a graph
    | Triton\ Error\ \[(CUDA|HIP)\]:\ out\ of\ memory
    | Cuda\ failure\ (\d+\ )?'out\ of\ memory' | Failed\ to\ CUDA\ [cm]alloc  # NCCL's communicators
    | (CU|HIP|ROC)[A-Z]+_(STATUS_)?ALLOC_FAILED           # cuBLAS, cuDNN, cuSOLVER, cuSPARSE, cuFFT, hipBLAS
    | CUDNN_STATUS_INTERNAL_ERROR_(DEVICE|HOST)_ALLOCATION_FAILED
    | rocblas_status_memory_error
    | DefaultCPUAllocator:\ (can't\ allocate|not\ enough)\ memory
    | Cannot\ allocate\ memory                            # ENOMEM, of mmap
    | std::bad_alloc
    """,
    re.VERBOSE,
)


def is_shortage(error: BaseException) -> bool:
    """Whether `error` says that memory has run out, of a device or of the machine.

    The text decides, whatever the subclass of RuntimeError: a device-side assert, a lost peer of NCCL or a
    missing compiler is no shortage, but errors of NCCL and of a compiler may tell of one.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and SHORTAGES.search(str(error)) is not None


@contextmanager
def bounded(what: str, remedy: str) -> Iterator[None]:
    """Let an allocation that fails inside say what was being made and what to do about it.

    Raises:
        DeviceMemoryError: the device has no memory left.
    """
    try:
        yield
    except Exception as error:
        if not is_shortage(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DeviceMemoryError(
            f"out of memory {what}: {reason} {remedy}; the run then goes on with --resume auto."
        ) from error


def forget(error: BaseException | None) -> None:
    """Let go of what the frames behind a shortage of memory hold: a checkpoint needs room, too."""
    if isinstance(error, DeviceMemoryError):
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__context__
