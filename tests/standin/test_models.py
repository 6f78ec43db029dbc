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

PROGRAMS = Path(__file__).parent / "programs"
SETTINGS = (
    ("model.precision=fp32",),
    ("model.precision=bf16",),
    ("model.precision=bf16", "model.offload=blocks"),
)
QUANTIZED = [("model.precision=bf16", f"model.quantization={kind.value}") for kind in PACKAGES]


@pytest.mark.parametrize("family", TINY)
def test_family(family: str, tiny_folder: Callable[[str], Path]) -> None:
    """With all settings in one process, which takes half of its time to start."""
    tiny = TINY[family]
    overrides = (
        f"model={tiny.choice}",
        f"model.path={tiny_folder(family)}",
        f"model.resolution={tiny.resolution}",
        f"model.max_sequence_length={tiny.max_sequence_length}",
        "model.embedding_cache=null",
        "model.compile=false",
        *tiny.overrides,
    )
    settings = [*SETTINGS, *(QUANTIZED if family in ("sd3", "flux_dev") else ())]
    each = [word for words in settings for word in ("--", *words)]
    done = run(str(PROGRAMS / "policy.py"), "~preset", "data.root=.", "run.dir=unused", *overrides, *each)
    assert done.code == 0, done.said


@pytest.mark.parametrize("name", here)
def test_reward(name: str, tmp_path: Path) -> None:
    done = run(str(PROGRAMS / "reward.py"), name, json.dumps(OPTIONS[name](tmp_path)))
    assert done.code == 0, done.said
