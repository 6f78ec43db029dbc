"""Measure what a reward costs: time and memory per image."""

import ctypes
import time
from collections.abc import Callable
from pathlib import Path

import torch

from marble_cli.rewards.api import Batch
from marble_cli.rewards.registry import Reward
from marble_cli.rewards.testing.calls import CheckImpossible, repeat_samples, score_copy


def time_an_image(reward: Reward, batch: Batch) -> str:
    """Measure the time per image; this always passes."""
    score_copy(reward, batch)
    start = time.perf_counter()
    score_copy(reward, batch)
    return f"{(time.perf_counter() - start) / len(batch.prompts) * 1000:.1f} ms"


def memory_an_image(reward: Reward, batch: Batch, in_process: bool) -> str:
    """Measure peak memory per image of a large batch, on the GPU too if it is used; this always passes."""
    if not in_process:
        raise CheckImpossible("it computes in another process")
    many = repeat_samples(batch)
    score_copy(reward, batch.rows([0]))  # allocates whatever is kept between calls
    cuda = torch.cuda.is_available() and torch.cuda.memory_allocated() > 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    texts = [f"{_peak_growth(lambda: score_copy(reward, many)) / len(many.prompts) / 2**20:.1f} MiB"]
    if cuda:
        growth = torch.cuda.max_memory_allocated() - before
        texts.append(f"{growth / len(many.prompts) / 2**20:.1f} MiB of GPU memory")
    return f"{', '.join(texts)} in a batch of {len(many.prompts)}"


def _peak_growth(call: Callable[[], object]) -> int:
    """Return by how many bytes this process's resident memory grows at most during `call`.

    Raises:
        CheckImpossible: the system does not report the peak.
    """
    try:
        # Otherwise the call reuses memory that earlier calls freed, and nothing grows.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present value
        before = _resident("VmRSS")
    except (AttributeError, OSError) as error:
        raise CheckImpossible(f"this system does not report the peak of memory: {error}") from error
    call()
    return max(0, _resident("VmHWM") - before)


def _resident(key: str) -> int:
    """Return a row of /proc/self/status in bytes."""
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(rows[key].split()[0]) * 1024
