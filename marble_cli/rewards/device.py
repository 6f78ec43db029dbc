"""Run a reward on its own GPU and CUDA stream, whichever thread builds or calls it.

CUDA's current device is a setting of each thread, at first GPU 0. A plugin that calls `.to("cuda")`, or
launches a kernel of its own, uses the current device.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from marble_cli.rewards.api import Batch


def numbered(device: Any, run: Any = "cpu") -> Any:
    """Return `cuda` with a number, and other devices unchanged.

    The number is that of the `run`'s GPU, or of this thread's current GPU if the run has none.
    """
    import torch

    if device != "cuda" or not torch.cuda.is_available():
        return device
    return run if is_gpu(run) else f"cuda:{torch.cuda.current_device()}"


def is_gpu(device: Any) -> bool:
    """Tell whether `device` is a numbered GPU and CUDA is available."""
    import torch

    return str(device).startswith("cuda:") and torch.cuda.is_available()


def current(device: Any) -> AbstractContextManager[Any]:
    """Return a context in which a GPU is this thread's current device; for other devices it does nothing."""
    import torch

    return torch.cuda.device(device) if is_gpu(device) else nullcontext()


def on(device: Any, call: Callable[[Batch], Any]) -> Callable[[Batch], Any]:
    """Make `call` compute on this GPU; the thread that calls it must be the reward's own.

    The work goes to a stream of its own and is finished when the call returns. On the rollout's stream, a
    reward that waits for its inputs or scores would wait for everything queued there. On other devices this
    returns `call` itself.
    """
    import torch

    if not is_gpu(device):
        return call
    with current(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())  # weights may still be being copied

    def called(batch: Batch) -> Any:
        with current(device), torch.cuda.stream(stream):
            answer = call(batch)
            stream.synchronize()
        return answer

    return called
