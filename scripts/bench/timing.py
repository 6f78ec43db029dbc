"""Measure jobs side by side: seconds in alternating rounds, and peaks of tensor memory."""

import gc
import os
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

# Without this the profiler announces every start and stop.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

Job = Callable[[], object]
Name = TypeVar("Name", bound=Hashable)  # of a job


class Progress:
    """Print a line when something is done, with the seconds that it took."""

    def __init__(self) -> None:
        self.since = time.perf_counter()

    def tell(self, what: str) -> None:
        """Print what was done since the last line."""
        now = time.perf_counter()
        print(f"[{now - self.since:5.1f} s] {what}", flush=True)
        self.since = now


def alternate(jobs: Mapping[Name, Job], repeats: int, *, warm_up: bool = True) -> dict[Name, list[float]]:
    """Time every job in `repeats` rounds A B C, A B C, ..., after one round to warm up unless all are warm.

    Returns:
        Wall seconds of each job, one figure per round.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in jobs}
    for repeat in range(-warm_up, repeats):
        for name, job in jobs.items():
            gc.collect()
            synchronise()
            began = time.perf_counter()
            job()
            synchronise()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(seconds: list[float], against: list[float]) -> float:
    """Return the median over rounds of one job's time divided by another's.

    Both times of a quotient are from the same round, so a slow spell of the machine cancels out.
    """
    return statistics.median(a / b for a, b in zip(seconds, against, strict=True))


def synchronise() -> None:
    """Wait until the GPU has finished, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes(job: Job, device: torch.device) -> int:
    """Run `job` and return the largest number of bytes that its tensors held at one time.

    Tensors that were alive before the call are not counted.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        job()
        synchronise()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        job()
    events = record.profiler.kineto_results.events()  # a trace, which has them too, takes as long as the job
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    live = peak = 0
    for _, change in changes:
        live += change
        peak = max(peak, live)
    return peak
