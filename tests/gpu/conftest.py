"""Give every test of this room a CUDA device; without one none of them runs.

MARBLE_TEST_DEVICE=cpu runs the same tests on the CPU, to try the tests themselves.
"""

import os
from collections.abc import Iterator

import pytest
import torch

from tests.gpu.tiny_run import SHORT

# Read by cuBLAS when it starts: sums have the same order in every run.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The first CUDA device, numbered as `model.device=cuda` numbers it."""
    name = os.environ.get("MARBLE_TEST_DEVICE", "cuda")
    if name == "cpu":
        return torch.device(name)
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    torch.cuda.init()  # sets a variable of the environment, once per process
    return torch.device("cuda", 0)


@pytest.fixture(scope="session")
def base_overrides(base_overrides: list[str], device: torch.device) -> list[str]:
    """The overrides of all rooms, on this device: `run_config`, `model` and `policy` follow."""
    return [*base_overrides, f"model.device={device.type}", "model.compile=false"]


@pytest.fixture(scope="module", autouse=True)
def _exact_float32(device: torch.device) -> Iterator[None]:
    """Multiply float32 in float32: TF32 keeps 10 bits of a factor, and cuDNN takes it unless told not to."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    kept = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield
    for backend, allowed in zip(backends, kept, strict=True):
        backend.allow_tf32 = allowed


@pytest.fixture(scope="module")
def deterministic() -> Iterator[None]:
    """Take algorithms that give the same bits in every run; an operation that has none fails the test."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def tiny_overrides(device: torch.device) -> list[str]:
    """Overrides of a short run of the embedded model."""
    return [*SHORT, f"model.device={device.type}"]
