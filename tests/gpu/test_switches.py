"""Gradient checkpointing, and compilation with Triton, on this device."""

from tests.policy.trainable.test_switches import (
    test_gradient_checkpointing_saves_memory,
    test_switch_changes_no_velocity_and_no_gradient,
)

__all__ = ["test_gradient_checkpointing_saves_memory", "test_switch_changes_no_velocity_and_no_gradient"]
