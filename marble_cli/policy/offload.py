"""Keep the frozen weights of a transformer's blocks in the CPU's memory: `model.offload=blocks`.

A block's weights are on the device while the block computes: in a forward pass, and again in a backward pass,
where gradient checkpointing calls the block once more. While one block computes, the next one's weights are
copied. Adapters stay on the device, as the optimizer and the gradients do. docs/explanation/offload.md says
why diffusers' group offloading does not train.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from marble_cli.errors import RequestError
from marble_cli.policy.trainable.lora_layer import LoraMatrix

ALIGNMENT = 256  # bytes, as in CUDA's own allocations


def offload_blocks(transformer: nn.Module, blocks: Sequence[nn.Module], device: torch.device) -> None:
    """Put the frozen weights of `blocks` into the CPU's memory, and the rest of `transformer` on `device`."""
    offload = BlockOffload([FrozenWeights(block, device) for block in blocks], device)
    offloaded = {id(parameter) for weights in offload.blocks for parameter in weights.parameters}
    for tensor in (*transformer.parameters(), *transformer.buffers()):
        if id(tensor) not in offloaded:
            tensor.data = tensor.data.to(device)
    for place, block in enumerate(blocks):
        # Outside of compiled code, which would be split by what moves weights.
        name = "forward" if block._compiled_call_impl is None else "_compiled_call_impl"
        setattr(block, name, offload.around(getattr(block, name), place))


class FrozenWeights:
    """The frozen parameters of a block, one after another in one buffer of the CPU's memory.

    Attributes:
        parameters: of the block, between its calls; their values are in `host`.
        host: uint8.
    """

    def __init__(self, block: nn.Module, device: torch.device) -> None:
        self.owners = [
            (module, name)
            for module in block.modules()
            for name, _ in module.named_parameters(recurse=False)
            if not isinstance(module, LoraMatrix)
        ]
        self.parameters: list[nn.Parameter] = [getattr(module, name) for module, name in self.owners]
        sizes = [-(-parameter.nbytes // ALIGNMENT) * ALIGNMENT for parameter in self.parameters]
        self.starts = list(accumulate(sizes, initial=0))
        self.host = torch.empty(self.starts.pop(), dtype=torch.uint8)
        if device.type == "cuda":
            _pin(self.host)
        for parameter, view in zip(self.parameters, self._views(self.host), strict=True):
            parameter.data = view.copy_(parameter.data)

    def _views(self, buffer: Tensor) -> Iterator[Tensor]:
        for parameter, start in zip(self.parameters, self.starts, strict=True):
            yield buffer[start : start + parameter.nbytes].view(parameter.dtype).view(parameter.shape)

    @contextmanager
    def replaced(self, buffer: Tensor) -> Iterator[None]:
        """Give the block parameters from `buffer`, a copy of `host`, inside a `with` block.

        These are other objects, because a graph keeps frozen parameters as objects until the backward pass.
        """
        for (module, name), view in zip(self.owners, self._views(buffer), strict=True):
            module._parameters[name] = nn.Parameter(view, requires_grad=False)
        try:
            yield
        finally:
            for (module, name), parameter in zip(self.owners, self.parameters, strict=True):
                module._parameters[name] = parameter


@dataclass(frozen=True)
class Copy:
    """A block's weights on the device once `done`; None on a CPU, which has copied already."""

    block: int
    buffer: Tensor
    done: torch.cuda.Event | None

    def wait(self) -> None:
        """Make the device's later work wait for the copy."""
        if self.done is not None:
            torch.cuda.current_stream(self.buffer.device).wait_event(self.done)


class BlockOffload:
    """Copies blocks to a device when they are called; at most two are there at a time.

    A buffer is allocated and freed in the order of the stream that computes. Copies run on a stream of their
    own, which first waits for what was computing when the buffer was allocated.
    """

    def __init__(self, blocks: Sequence[FrozenWeights], device: torch.device) -> None:
        self.blocks, self.device = blocks, device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.ahead: Copy | None = None  # of the block that is called next
        self.last = -1  # the block that was called last

    def around(self, call: Callable[..., Any], block: int) -> Callable[..., Any]:
        """Return `call` of a block with its weights on the device."""

        @wraps(call)
        def with_weights(*args: Any, **kwargs: Any) -> Any:
            with self.on_device(block):
                return call(*args, **kwargs)

        return with_weights

    @contextmanager
    def on_device(self, block: int) -> Iterator[None]:
        """Have a block's weights on the device inside; gradient checkpointing may end it by an exception."""
        # Backward passes call blocks in reverse. A wrong guess of the next one costs its copy, no more.
        backward = block in (self.last, self.last - 1)
        following, self.last = block - 1 if backward else block + 1, block
        ahead, self.ahead = self.ahead, None
        if ahead is not None:
            ahead.wait()  # even if it was a wrong guess, because its buffer is freed
        if ahead is None or ahead.block != block:
            ahead = self._copy(block)
            ahead.wait()
        if 0 <= following < len(self.blocks):
            self.ahead = self._copy(following)
        with self.blocks[block].replaced(ahead.buffer):
            yield

    def _copy(self, block: int) -> Copy:
        host = self.blocks[block].host
        buffer = torch.empty_like(host, device=self.device)
        if self.stream is None:
            return Copy(block, buffer.copy_(host), None)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            buffer.copy_(host, non_blocking=True)
        return Copy(block, buffer, self.stream.record_event())


def _pin(host: Tensor) -> None:
    """Lock a buffer in the CPU's memory until it is freed, so that a device reads it while computing.

    torch's own pinned memory is rounded up to a power of two: up to twice a model's size.

    Raises:
        RequestError: the system does not allow it.
    """
    runtime = torch.cuda.cudart()
    code = runtime.cudaHostRegister(host.data_ptr(), host.nbytes, 0)
    if code != runtime.cudaError.success:
        raise RequestError(
            f"model.offload=blocks: the CPU's memory cannot hold {host.nbytes:,} more locked bytes (CUDA "
            f"error {int(code)}). Free some, raise the limit of this machine or container, or set "
            "model.offload=none."
        )
    weakref.finalize(host, runtime.cudaHostUnregister, host.data_ptr()).atexit = False
