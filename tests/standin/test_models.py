"""Every family of models and every bundled reward runs through on a CUDA device."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from marble_cli.policy.quantization import PACKAGES
from tests.gpu.test_rewards import OPTIONS, here
from tests.policy.conftest import tiny_folder
from tests.policy.families.pipelines import TINY
from tests.standin.device import run

__all__ = ["tiny_folder"]

QUANTIZED = [(family, kind.value) for family in ("sd3", "flux_dev") for kind in PACKAGES]
PROGRAMS = Path(__file__).parent / "programs"


SETTINGS = {
    "fp32": ("model.precision=fp32",),
    "bf16": ("model.precision=bf16",),
    "offload": ("model.precision=bf16", "model.offload=blocks"),
}


def run_policy(family: str, folder: Path, *more: str) -> None:
    """Run programs/policy.py with a tiny pipeline and further overrides."""
    tiny = TINY[family]
    overrides = (
        f"model={tiny.choice}",
        f"model.path={folder}",
        f"model.resolution={tiny.resolution}",
        f"model.max_sequence_length={tiny.max_sequence_length}",
        "model.embedding_cache=null",
        "model.compile=false",
        *tiny.overrides,
        *more,
    )
    done = run(str(PROGRAMS / "policy.py"), "~preset", "data.root=.", "run.dir=unused", *overrides)
    assert done.code == 0, done.said


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("family", TINY)
def test_family(family: str, settings: str, tiny_folder: Callable[[str], Path]) -> None:
    run_policy(family, tiny_folder(family), *SETTINGS[settings])


@pytest.mark.parametrize(("family", "kind"), QUANTIZED)
def test_quantized_family(family: str, kind: str, tiny_folder: Callable[[str], Path]) -> None:
    run_policy(family, tiny_folder(family), "model.precision=bf16", f"model.quantization={kind}")


@pytest.mark.parametrize("name", here)
def test_reward(name: str, tmp_path: Path) -> None:
    done = run(str(PROGRAMS / "reward.py"), name, json.dumps(OPTIONS[name](tmp_path)))
    assert done.code == 0, done.said
