"""Find what a test left changed in its process, where later tests would fail for it."""

import logging
import os
import resource
import signal
from collections.abc import Callable
from typing import Any

import torch

LIMITS = (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_AS)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXFSZ)
# Variables that libraries (cv2, jax, torch, triton, wandb) set for the rest of the process, and a
# configuration's secrets.
LASTING = (
    "PYTEST_",
    "LD_LIBRARY_PATH",
    "QT_QPA_",
    "TF_CPP_",
    "TORCHINDUCTOR_",
    "TPU_",
    "TRITON_",
    "_TORCHINDUCTOR_",
    "WANDB_SERVICE",
    "MARBLE_SECRET_",
)
READERS: dict[str, Callable[[], Any]] = {
    "environment": lambda: {key: value for key, value in os.environ.items() if not key.startswith(LASTING)},
    "working directory": os.getcwd,
    "resource limits": lambda: [resource.getrlimit(limit) for limit in LIMITS],
    "signal handlers": lambda: [signal.getsignal(number) for number in SIGNALS],
    "default dtype": torch.get_default_dtype,
    "default device": torch.get_default_device,
    "threads of torch": torch.get_num_threads,
    "gradients": torch.is_grad_enabled,
    "inference mode": torch.is_inference_mode_enabled,
    "deterministic algorithms": torch.are_deterministic_algorithms_enabled,
    "process group": torch.distributed.is_initialized,
    "root logger": lambda: (logging.root.level, logging.root.disabled, list(logging.root.handlers)),
}


def read_state() -> dict[str, Any]:
    """Read all settings of the process that one test could spoil for another, by name."""
    return {name: read() for name, read in READERS.items()}


def restore(state: dict[str, Any]) -> None:
    """Put back what would make every later test fail too."""
    changed = read_state()["environment"]
    for key in changed.keys() - state["environment"].keys():
        del os.environ[key]
    os.environ.update(state["environment"])
    os.chdir(state["working directory"])
    for limit, values in zip(LIMITS, state["resource limits"], strict=True):
        resource.setrlimit(limit, values)
    for number, handler in zip(SIGNALS, state["signal handlers"], strict=True):
        signal.signal(number, handler)
    torch.set_default_dtype(state["default dtype"])
    torch.set_default_device(state["default device"])
    torch.set_num_threads(state["threads of torch"])
    torch.set_grad_enabled(state["gradients"])
    torch.use_deterministic_algorithms(state["deterministic algorithms"])


def describe_changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Describe each setting that differs; of the environment only the variables that do."""
    changes = []
    for name, value in before.items():
        now = after[name]
        if now == value:
            continue
        if name == "environment":
            keys = sorted(key for key in value.keys() | now.keys() if value.get(key) != now.get(key))
            changes.append(f"environment: {', '.join(keys)}")
        else:
            changes.append(f"{name}: {value} -> {now}")
    return changes
