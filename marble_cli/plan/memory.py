"""Estimate a run's device memory before loading, and name what to lower when memory runs out."""

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
from marble_cli.config.enums import Parallel, Precision, RefreshWhen, Train
from marble_cli.config.schema import RunConfig
from marble_cli.errors import DeviceMemoryError, RequestError
from marble_cli.policy.base import ModelSize
from marble_cli.policy.size import model_size
from marble_cli.policy.source import DTYPES


@dataclass(frozen=True)
class Memory:
    """Bytes on each process's device.

    Attributes:
        frozen: frozen weights, including the text encoders if they stay on the device.
        trained: trained and behaviour weights, AdamW's moments, moving average and the gradients of a
            refresh.
        activations: activations of a micro-batch, roughly.
        encoders: text encoders while prompts are encoded into the cache; 0 if they stay on the device.
    """

    frozen: int
    trained: int
    activations: int
    encoders: int

    @property
    def least(self) -> int:
        """Bytes that the run needs at any batch size."""
        return max(self.frozen + self.trained, self.frozen + self.encoders)


def memory(config: RunConfig, size: ModelSize) -> Memory:
    """Estimate the bytes that `config` needs on every process's device.

    A training pass keeps about two bytes per token and output of the blocks' linear layers. With gradient
    checkpointing it keeps the blocks' inputs and the activations of one block
    (docs/explanation/algorithm.md). Training float32 weights keeps some activations in float32, about half as
    much again, and half-precision copies of the weights. With trainer.parallel=fsdp, a process holds its own
    shard and the blocks that it has gathered: two, or all of them if they are kept for the backward pass. A
    refresh keeps the rewards' gradients of a LoRA unsharded, two for each with balance.refresh_when=stale.
    """
    weights, moments, average = 2, 2, 1
    full, fsdp = config.model.train is Train.full, config.trainer.fsdp
    shards, gathered = 1, 0
    transformer = size.transformer * DTYPES[config.model.precision].itemsize
    if config.trainer.parallel is Parallel.fsdp:
        shards = processes(config) // fsdp.replicas
        gathered = min(2, size.blocks) * transformer // size.blocks if fsdp.reshard else transformer
    halves = 2 if config.balance.refresh_when is RefreshWhen.stale else 1
    gradients = halves * len(config.rewards)
    unsharded = 0 if full else gradients
    sharded = weights + moments + average + gradients + 2 - unsharded
    batch = min(config.trainer.micro_batch_size, geometry(config).images // processes(config))
    kept = 2 * batch * (size.tokens + config.model.max_sequence_length) * size.features
    if full:
        copies = shards == 1 and config.model.precision is not Precision.fp32
        kept = 3 * kept // 2 + (2 * size.trained if copies else 0)
    if config.model.gradient_checkpointing:
        kept = 2 * kept // size.blocks
    cached = config.model.embedding_cache is not None
    staying = 0 if cached else size.encoder_bytes
    return Memory(
        frozen=size.frozen_bytes - transformer + transformer // shards + gathered + staying,
        trained=4 * size.trained * unsharded + 4 * size.trained * sharded // shards,
        activations=kept,
        encoders=size.encoder_bytes if cached else 0,
    )


def check_memory(config: RunConfig, device: torch.device) -> None:
    """Check that frozen model, trained weights and gradients fit into the free memory of the device.

    Raises:
        RequestError: they do not fit; the message says what to lower.
    """
    size = model_size(config.model)
    free = free_memory(device)
    if size is None or free is None or (needed := memory(config, size).least) <= free:
        return
    smaller = (
        "Lower model.lora.rank" if config.model.train is Train.lora else "Train a LoRA (model.train=lora)"
    )
    raise RequestError(
        f"the run needs about {_bytes(needed)} on {device} besides activations, and {_bytes(free)} are free. "
        f"{smaller}, share it among more processes (trainer.parallel=fsdp), use model.precision=bf16, set "
        "model.embedding_cache, or free the device."
    )


def describe(needed: Memory, config: RunConfig) -> str:
    """Describe the memory estimate in one line."""
    parts = [
        f"{_bytes(needed.frozen)} of frozen weights",
        f"{_bytes(needed.trained)} of trained weights, moments and gradients",
        f"about {_bytes(needed.activations)} of activations "
        f"(trainer.micro_batch_size={config.trainer.micro_batch_size})",
    ]
    if needed.encoders:
        parts.append(f"{_bytes(needed.encoders)} of text encoders, while prompts are encoded")
    return "per process: " + "; ".join(parts)


def _bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def free_memory(device: torch.device) -> int | None:
    """Return the free bytes on `device`, for a CPU those of the machine; None if the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    info = Path("/proc/meminfo")
    if not info.is_file():
        return None
    rows: dict[str, Any] = dict(line.split(":") for line in info.read_text().splitlines())
    return int(rows["MemAvailable"].split()[0]) * 1024


# Messages of backends that ran out of memory, for which torch has no error class.
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
    """Return whether `error` reports that a device or the machine ran out of memory.

    The text of a RuntimeError decides, not its subclass: NCCL and compilers raise the same class for a
    shortage of memory as for a lost peer or a missing compiler.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and SHORTAGES.search(str(error)) is not None


@contextmanager
def bounded(what: str, remedy: str) -> Iterator[None]:
    """Re-raise a shortage of memory inside the block as DeviceMemoryError, with the phase and a remedy.

    Args:
        what: the phase, e.g. "in the rollout of step 3".
        remedy: what to lower, as the beginning of a sentence.

    Raises:
        DeviceMemoryError: an allocation failed.
    """
    try:
        yield
    except Exception as error:
        if not is_shortage(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DeviceMemoryError(
            f"out of memory {what}: {reason} {remedy}; then resume the run with --resume auto."
        ) from error


def forget(error: BaseException | None) -> None:
    """Free the tensors that the frames of a DeviceMemoryError hold, as writing a checkpoint needs memory."""
    if isinstance(error, DeviceMemoryError):
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__context__
