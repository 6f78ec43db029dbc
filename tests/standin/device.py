"""Start programs on a CUDA device that is not there."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIBRARIES = Path(sys.prefix) / "standin"  # made by stub/build.sh


@dataclass(frozen=True)
class Finished:
    """A program's exit code, and its output with all runs of white space as one blank."""

    code: int
    said: str


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    """Return variables under which a program sees so many devices of 79 GiB.

    Args:
        devices: that torch finds.
        more: further variables, such as those that stub/devices.c reads.
    """
    libraries = ("libfakecuda.so", "libnvrtc.so.13", "libcuda.so.1")
    return {
        **os.environ,
        "FAKECUDA": "1",
        "FAKECUDA_DEVICES": str(devices),
        "STANDIN": str(LIBRARIES),
        "LD_PRELOAD": " ".join(str(LIBRARIES / name) for name in libraries),
        "LD_LIBRARY_PATH": str(LIBRARIES),
        "PYTHONPATH": f"{LIBRARIES}{os.pathsep}{ROOT}",
        "OMP_NUM_THREADS": "1",
        **more,
    }


def run(*words: str, devices: int = 1, seconds: float = 1800, **more: str) -> Finished:
    """Run this environment's python on the stand-in.

    Raises:
        subprocess.TimeoutExpired: it takes longer than `seconds`.
    """
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=seconds,
        env=environment(devices, **more),
        cwd=ROOT,
    )
    return Finished(done.returncode, " ".join((done.stdout + done.stderr).split()))


def counts(program: str) -> Any:
    """Run a module that prints FOUND and its counts as JSON, and return them."""
    done = run("-m", program, seconds=900)
    assert done.code == 0, done.said
    return json.JSONDecoder().raw_decode(done.said.partition("FOUND ")[2])[0]


def marble(*words: str, devices: int = 1, **more: str) -> Finished:
    """Run `marble` on the stand-in."""
    return run("-m", "marble_cli", *words, devices=devices, **more)
