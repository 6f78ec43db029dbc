"""Forecast how long a job takes on one H100 SXM, from what each of its kernels computes and moves.

A kernel takes the longest of three times: that of its FLOP, that of the bytes which it reads and writes, and
that of a launch. The speeds are what well-made kernels reach, not the data sheet's. Nothing is timed, so the
forecast is the same on the stand-in for a GPU (tests/standin), whose kernels compute nothing.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._inductor import config as inductor_config
from torch._inductor.runtime.triton_heuristics import CachingAutotuner
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from scripts.bench.timing import Job

BANDWIDTH = 2.7e12  # bytes per second
LAUNCH = 2.2e-6  # seconds
# FLOP per second.
HALF_PRODUCTS, FLOAT32_PRODUCTS, ATTENTION, ATTENTION_BACKWARD = 600e12, 45e12, 380e12, 280e12
FREE = frozenset(("_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"))


def forecast(job: Job, device: torch.device) -> float:
    """Return the seconds that a job would take on an H100 SXM if its kernels ran one after another.

    Kernels that Inductor compiled before `note_kernel_sizes` count as launches alone.
    """
    roofline = Roofline(device)
    with roofline, roofline.of_inductor():
        job()
    return roofline.seconds


def note_kernel_sizes() -> None:
    """Let Inductor note in every kernel that it compiles from now on how many bytes the kernel moves."""
    inductor_config.benchmark_kernel = True


class Roofline(TorchDispatchMode):
    """Add up the shortest possible seconds of all operations on a device.

    Attributes:
        seconds: so far.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device, self.seconds = device, 0.0

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let blocks be compiled as they are without this mode; it sees what compiled code calls."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation, and add the seconds of its kernel."""
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func._overloadpacket.__name__ not in FREE:
            self.seconds += self.seconds_of(func, args, dict(kwargs or {}), result)
        return result

    def seconds_of(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> float:
        """Return an operation's seconds; none if it has no tensor on the device."""
        name, packet = func._overloadpacket.__name__, func._overloadpacket
        kwargs.pop("out", None)  # is the result
        read, written = self.tensors((args, kwargs)), self.tensors(result)
        if not read and not written:
            return 0.0
        operations = flop_registry[packet](*args, **kwargs, out_val=result) if packet in flop_registry else 0
        if name in ("copy_", "fill_", "zero_"):
            read = read[1:]  # the target is not read
        moved = sum(map(stored_bytes, read + written))
        return max(operations / product_speed(name, read), moved / BANDWIDTH, LAUNCH)

    def tensors(self, tree: Any) -> list[Tensor]:
        """Return the tensors in nested arguments that are on the device."""
        return [
            leaf
            for leaf in tree_leaves(tree)
            if isinstance(leaf, Tensor) and leaf.device.type == self.device.type
        ]

    @contextmanager
    def of_inductor(self) -> Iterator[None]:
        """Add the seconds of Inductor's own kernels for a GPU, which are no operations of torch."""
        run = CachingAutotuner.run

        def counted(kernel: CachingAutotuner, *args: Any, **kwargs: Any) -> Any:
            moved = 1e9 * (kernel.inductor_meta.get("kernel_num_gb") or 0.0)
            self.seconds += max(moved / BANDWIDTH, LAUNCH)
            return run(kernel, *args, **kwargs)  # type: ignore[no-untyped-call]

        with patch.object(CachingAutotuner, "run", counted):
            yield


def product_speed(name: str, read: list[Tensor]) -> float:
    """Return the FLOP per second of an operation that reads these tensors."""
    if "attention" in name:
        return ATTENTION_BACKWARD if "backward" in name else ATTENTION
    kinds = {tensor.dtype for tensor in read if tensor.is_floating_point()}
    return HALF_PRODUCTS if kinds and kinds <= {torch.bfloat16, torch.float16} else FLOAT32_PRODUCTS


def stored_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor's values; those along an expanded dimension are stored once."""
    bytes_ = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        bytes_ *= length if stride else 1
    return bytes_
