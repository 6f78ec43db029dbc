"""Gradient checkpointing, offload, and compilation with Triton, on this device."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from marble_cli.config.enums import Switch
from marble_cli.config.schema import ModelConfig
from marble_cli.policy.compilation import choose_compilation
from tests.policy.trainable.compiler import NEEDS_COMPILER, WITHOUT_COMPILER_WARNINGS
from tests.policy.trainable.test_switches import (
    test_gradient_checkpointing_saves_memory,
    test_switch_changes_no_velocity_and_no_gradient,
)

__all__ = ["test_gradient_checkpointing_saves_memory", "test_switch_changes_no_velocity_and_no_gradient"]


@NEEDS_COMPILER
@WITHOUT_COMPILER_WARNINGS
def test_compilation_changes_no_velocity_and_no_gradient(
    model: ModelConfig, policy: Any, randomise: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    switch = {"compile": Switch.true}
    test_switch_changes_no_velocity_and_no_gradient(model, policy, randomise, switch, monkeypatch)


@NEEDS_COMPILER
def test_auto_compiles_for_a_gpu(device: torch.device) -> None:
    chosen = choose_compilation(Switch.auto, device)
    assert chosen.on == (device.type == "cuda"), chosen
