"""Name what to lower when a run is out of memory."""

import errno
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from marble_cli.errors import DeviceMemoryError

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
