"""Gradient checkpointing, and compilation with Triton, on this device."""

import torch

from marble_cli.config.enums import Switch
from marble_cli.policy.compilation import choose_compilation
from tests.policy.trainable.compiler import NEEDS_COMPILER
from tests.policy.trainable.test_switches import (
    test_gradient_checkpointing_saves_memory,
    test_switch_changes_no_velocity_and_no_gradient,
)

__all__ = ["test_gradient_checkpointing_saves_memory", "test_switch_changes_no_velocity_and_no_gradient"]


@NEEDS_COMPILER
def test_auto_compiles_for_a_gpu(device: torch.device) -> None:
    chosen = choose_compilation(Switch.auto, device)
    assert chosen.on == (device.type == "cuda"), chosen
