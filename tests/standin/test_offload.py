"""Offloaded blocks take what the plan says, at Stable Diffusion 3.5 Medium's true size."""

from typing import Any

import pytest

from marble_cli.plan.memory import memory
from marble_cli.policy.size import model_size
from scripts.bench.sd35m import step_config
from tests.standin.device import counts

GIB = 2**30
PEAK = {"plain": 1.7, "refresh": 2.2}  # GiB, with the weights
PASSES = {"plain": 4, "refresh": 5}  # over each of three micro-batches


@pytest.fixture(scope="module")
def found() -> Any:
    """The counts of tests/standin/programs/offload.py."""
    return counts("tests.standin.programs.offload")


@pytest.mark.parametrize("step", PEAK)
def test_peak_memory_falls_as_planned(found: Any, step: str) -> None:
    kept, offloaded = found[f"{step}, none"]["peak"], found[f"{step}, blocks"]["peak"]
    assert offloaded <= PEAK[step] * GIB
    config = step_config(False, "model.offload=blocks")
    size = model_size(config.model)
    assert size is not None
    saved = memory(step_config(False), size).frozen - memory(config, size).frozen
    assert kept - offloaded == pytest.approx(saved, rel=0.05)


@pytest.mark.parametrize("step", PASSES)
def test_every_pass_copies_every_block_once_and_nothing_waits(found: Any, step: str) -> None:
    kept, offloaded = found[f"{step}, none"], found[f"{step}, blocks"]
    assert offloaded["copies"] - kept["copies"] == 24 * 3 * PASSES[step]
    assert offloaded["waits"] == kept["waits"]
