"""A reward computes on its own GPU, and on a stream of its own there, whichever thread builds or calls it.

CUDA's current device belongs to a thread and is the first GPU to begin with. A plugin that says
`.to("cuda")`, or launches a kernel of its own, means the current one.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from marble_cli.rewards.api import Batch


def numbered(device: Any, run: Any = "cpu") -> Any:
    """`cuda` with a number: the GPU of the `run`, or this thread's current one; any other device as it is."""
    import torch

    if device != "cuda" or not torch.cuda.is_available():
        return device
    return run if is_gpu(run) else f"cuda:{torch.cuda.current_device()}"


def is_gpu(device: Any) -> bool:
    """Whether `device` is a GPU with a number, and there are GPUs."""
    import torch

    return str(device).startswith("cuda:") and torch.cuda.is_available()


def current(device: Any) -> AbstractContextManager[Any]:
    """While entered, a GPU is this thread's current one; nothing for other devices."""
    import torch

    return torch.cuda.device(device) if is_gpu(device) else nullcontext()


def on(device: Any, call: Callable[[Batch], Any]) -> Callable[[Batch], Any]:
    """`call` on this GPU, in a thread that only this reward uses; on other devices `call` itself.

    Its work goes to a stream of its own and is done when it returns. On the rollout's stream, a reward that
    waits for inputs or scores would wait for all that is queued there.
    """
    import torch

    if not is_gpu(device):
        return call
    with current(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())  # weights may still be on their way

    def called(batch: Batch) -> Any:
        torch.cuda.set_device(device)
        with torch.cuda.stream(stream):
            answer = call(batch)
            stream.synchronize()
        return answer

    return called
