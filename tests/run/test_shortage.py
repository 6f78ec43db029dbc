"""An error that means a shortage of memory names a remedy; any other passes as it is."""

import errno
import re

import pytest
import torch
import torch.distributed as dist

from marble_cli.errors import DeviceMemoryError, RewardError
from marble_cli.run.drawing import SMALLER_ROLLOUT
from marble_cli.run.shortage import bounded


def test_an_allocation_that_fails_says_what_to_do() -> None:
    said = r"out of memory in the rollout of step 3: .* Lower rollout"
    with pytest.raises(DeviceMemoryError, match=said), bounded("in the rollout of step 3", "Lower rollout"):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(DeviceMemoryError, match="here: CUDA out of memory"), bounded("here", ""):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")


NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled "
CUDA = "CUDA kernel errors might be asynchronously reported at some other API call"


def accelerator(text: str) -> Exception:
    """As torch raises what CUDA's runtime says."""
    return torch.AcceleratorError(f"CUDA error: {text}\n{CUDA}")


class CppCompileError(RuntimeError):
    """As of torch._inductor.exc, which takes seconds to import."""


SHORTAGES = {
    "the allocator of CUDA": torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"
    ),
    "of HIP": torch.OutOfMemoryError("HIP out of memory. Tried to allocate 2.00 GiB."),
    "of a GPU that has no text": torch.OutOfMemoryError(),
    "of MPS": RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB, other allocations: 1.12 GB)"),
    "of the CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 1152921504606846976 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "of the CPU, elsewhere": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:116] data. DefaultCPUAllocator: not enough memory: you tried to"
    ),
    "CUDA beside the allocator": accelerator("out of memory"),
    "CUDA before AcceleratorError": RuntimeError(f"CUDA error: out of memory\n{CUDA}"),
    "the driver": RuntimeError("CUDA driver error: out of memory"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuDNN 8": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuDNN 9": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "cuSOLVER": RuntimeError(
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"
    ),
    "cuFFT": RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    "hipBLAS": RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
    "Triton": RuntimeError("Triton Error [CUDA]: out of memory"),
    "NCCL's communicator": dist.DistBackendError(
        f"{NCCL}cuda error, NCCL version 2.28.9\nncclUnhandledCudaError: Call to CUDA "
        "function failed.\nLast error:\nCuda failure 2 'out of memory'"
    ),
    "NCCL's buffers": dist.DistBackendError(
        f"{NCCL}cuda error\nncclUnhandledCudaError\nLast error:\nFailed to CUDA calloc async 24576 bytes"
    ),
    "a compiler's benchmark": type("InductorError", (RuntimeError,), {})(
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 512.00 MiB."
    ),
    "Python": MemoryError(),
    "numpy": MemoryError("Unable to allocate 1.00 EiB for an array with shape (1152921504606846976,)"),
    "C++": RuntimeError("std::bad_alloc"),
    "a file that is mapped": RuntimeError(
        "unable to mmap 9 bytes from file </w.safetensors>: Cannot allocate memory (12)"
    ),
    "a process that is started": OSError(errno.ENOMEM, "Cannot allocate memory"),
}
OTHERS = {
    "a device-side assert": accelerator("device-side assert triggered"),
    "an illegal access": accelerator("an illegal memory access was encountered"),
    "no kernel": accelerator("no kernel image is available for execution on the device"),
    "a lost peer": dist.DistBackendError(
        f"{NCCL}system error\nncclRemoteError: A call failed possibly due to a network error or a remote "
        "process exiting prematurely.\nLast error:\nsocketProgress: Connection closed by remote peer"
    ),
    "/dev/shm": dist.DistBackendError(
        f"{NCCL}system error\nLast error:\nError while creating shared memory segment /dev/shm/nccl-x"
    ),
    "a watchdog": dist.DistBackendError(
        "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE"
    ),
    "a store": dist.DistStoreError("wait timeout after 7200000ms, keys: /default_pg/0//cpu//0/0"),
    "gloo": RuntimeError(
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:5"
    ),
    "no C compiler": RuntimeError("Failed to find C compiler. Please specify via CC environment variable"),
    "a C++ compiler's fault": CppCompileError(
        "C++ compile error\n\nOutput:\nfatal error: Python.h: No such file"
    ),
    "shared memory of a kernel": RuntimeError(
        "out of resource: shared memory, Required: 262144, Hardware limit: 232448."
    ),
    "cuBLAS without a device": RuntimeError(
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"
    ),
    "an operator that is missing": NotImplementedError("operator not implemented for CUDA"),
    "depth": RecursionError("maximum recursion depth exceeded"),
    "shapes": RuntimeError(
        "The size of tensor a (3) must match the size of tensor b (4) at non-singleton dimension 1"
    ),
    "storage": RuntimeError("Trying to create tensor with negative dimension -1"),
    "a disk": OSError(errno.ENOSPC, "No space left on device"),
    "a value": ValueError("CUDA out of memory is what this text says"),
    "the run's own": RewardError("reward ocr failed on 9 images: OutOfMemoryError: CUDA out of memory"),
}


@pytest.mark.parametrize("error", SHORTAGES.values(), ids=SHORTAGES)
def test_a_shortage_of_memory_is_called_one(error: Exception) -> None:
    reason = re.escape(str(error).splitlines()[0] if str(error) else type(error).__name__)
    said = rf"^out of memory in an evaluation: {reason} Lower rollout.batch_size; then resume the run with"
    with pytest.raises(DeviceMemoryError, match=said) as caught, bounded("in an evaluation", SMALLER_ROLLOUT):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", OTHERS.values(), ids=OTHERS)
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, bounded("in an evaluation", SMALLER_ROLLOUT):
        raise error
    assert caught.value is error
