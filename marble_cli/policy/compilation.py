"""Decide whether a transformer's blocks are compiled: `model.compile`.

On a GPU torch compiles to Triton, which builds a small C library when it is first used. So it takes a C
compiler (the variable CC, gcc or clang, looked for in this order) and Python's headers.
"""

import importlib.util
import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch

from marble_cli.config.enums import Switch

LEAST_CAPABILITY = (7, 0)  # of a GPU that torch compiles for


@dataclass(frozen=True)
class Compilation:
    """Whether blocks are compiled, and why if `model.compile` left that open."""

    on: bool
    reason: str | None = None

    def __str__(self) -> str:
        text = f"the transformer's blocks are {'compiled' if self.on else 'not compiled'}"
        return text if self.reason is None else f"{text} (model.compile=auto: {self.reason})"


def choose_compilation(choice: Switch, device: torch.device) -> Compilation:
    """Return what `model.compile` means on `device`; `auto` compiles where Triton can."""
    if choice is not Switch.auto:
        return Compilation(choice is Switch.true)
    obstacle = find_obstacle(device)
    return Compilation(obstacle is None, obstacle or "Triton can compile for the GPU")


def find_obstacle(device: torch.device) -> str | None:
    """Return why Triton cannot compile for `device`, with a remedy if there is one; None if it can."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} is older than what Triton compiles for"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or shutil.which(compiler) is None:
        named = "that CC names " if compiler else ""
        return f"there is no C compiler {named}here; install gcc to compile"
    headers = Path(sysconfig.get_paths(_scheme())["include"]) / "Python.h"
    if not headers.is_file():
        return f"{headers} is missing; install Python's headers (python3-dev) to compile"
    return None


def _scheme() -> str:
    """Return where Triton looks for headers: Debian's own scheme has none."""
    scheme = sysconfig.get_default_scheme()
    return "posix_prefix" if scheme == "posix_local" else scheme
