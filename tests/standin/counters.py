"""Count what a program asks of the stand-in device."""

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# The order of the counters in stub/standin.h.
NAMES = (
    "launches", "products", "host_to_device", "device_to_host", "device_to_device", "bytes_to_device",
    "bytes_to_host", "waits", "allocations", "frees", "collectives", "collective_bytes", "events", "fills",
)  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """What a job asked for: kernel launches, matrix products, waits for the device, copies, peak bytes."""

    launches: int
    products: int
    waits: int
    host_to_device: int
    device_to_host: int
    peak_bytes: int


def count(job: Callable[[], Any]) -> Counts:
    """Run a job twice, the first time for what is allocated once, and count the second time.

    The peak is the caching allocator's, beyond what was allocated before.
    """
    import torch

    library = ctypes.CDLL(f"{os.environ['STANDIN']}/libfakecuda.so")
    library.fc_get.restype = ctypes.c_long
    job()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    library.fc_reset()
    job()
    found = {name: library.fc_get(place) for place, name in enumerate(NAMES)}
    return Counts(
        peak_bytes=torch.cuda.max_memory_allocated() - before,
        **{name: found[name] for name in Counts.__dataclass_fields__ if name in found},
    )
