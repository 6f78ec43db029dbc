"""Examine a machine and its environment: versions, devices, solvers, rewards, the embedded model."""

import platform
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version

from marble_cli.doctor.finding import Finding, check

PACKAGES = ("torch", "diffusers", "transformers", "peft", "hydra-core", "qpsolvers", "osqp", "wandb")


def examine_machine() -> list[Finding]:
    """Run every check; a check that fails becomes a finding, not an error."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", platform.python_version),
        *((package, lambda package=package: version(package)) for package in PACKAGES),
        ("device", _device),
        ("balance solver", _solver),
        ("rewards", _rewards),
        ("embedded model", _embedded),
        ("this folder", _folder),
        ("W&B", _wandb),
    ]
    return [check(name, examine) for name, examine in checks]


def _device() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"no GPU; CPU with {torch.get_num_threads()} threads"
    sizes = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{p.name} {p.total_memory / 2**30:.0f} GiB" for p in sizes)


def _solver() -> str:
    import numpy as np

    from marble_cli.balance.solver import least_norm, solvers

    gram = np.array([[1.0, -0.5, 0.2], [-0.5, 1.0, 0.1], [0.2, 0.1, 1.0]])
    optimum = least_norm(gram)
    others = ", ".join(name for name in solvers() if name != optimum.solver)
    return f"{optimum.solver}, gap {optimum.gap:.0e}; also {others}"


def _rewards() -> str:
    from marble_cli.plugins import installed
    from marble_cli.rewards.registry import load_plugin

    for name in installed():
        load_plugin(name)
    return ", ".join(installed())


def _embedded() -> str:
    from marble_cli.policy.source import EMBEDDED

    files = list(EMBEDDED.rglob("*.safetensors"))
    if not files:
        raise FileNotFoundError("the package holds no weights; reinstall it")
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"


def _folder() -> str:
    with tempfile.TemporaryFile(dir="."):
        return f"can be written; {shutil.disk_usage('.').free / 2**30:.0f} GiB free"


def _wandb() -> str:
    from marble_cli.config.enums import WandbMode
    from marble_cli.config.schema import WandbConfig
    from marble_cli.metrics.wandb_destination import resolve_destination

    return str(resolve_destination(WandbConfig(WandbMode.auto, None, None)))
