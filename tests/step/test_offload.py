"""A step's gradients through offloaded blocks, in float64: those of blocks that stay."""

from collections.abc import Iterator
from typing import Any

import pytest

from marble_cli.config.enums import SharedTerm, Train
from marble_cli.objective.coefficients import reward_coefficients
from marble_cli.policy.offload import offload_blocks
from marble_cli.policy.trainable.blocks import repeated_blocks
from marble_cli.step.batches import chunks
from marble_cli.step.gradients import Gradients, mixture_gradient, reward_gradients
from tests.step.directions import distance


@pytest.fixture
def offload_now(double_policy: Any) -> Iterator[Any]:
    """A function that offloads the policy's blocks until the test ends."""
    transformer = double_policy.network
    blocks = repeated_blocks(transformer)

    def offload() -> None:
        transformer.enable_gradient_checkpointing()
        offload_blocks(transformer, blocks, double_policy.device)

    yield offload
    transformer.disable_gradient_checkpointing()
    for block in blocks:
        block.__dict__.pop("forward", None)


def both(case: Any, policy: Any) -> list[Gradients]:
    """Take a refresh's gradients with all of its backward passes, then an amortised step's."""
    signal, step, parts = case.signal, case.step(policy), chunks(case.data, case.objective.micro_batch_size)
    inside, outside = (
        reward_coefficients(signal.optimality, signal.applicable, shared_term=term)
        for term in (SharedTerm.inside, SharedTerm.outside)
    )
    return [
        reward_gradients(step, parts, inside.rewards, outside.shared),
        mixture_gradient(step, parts, outside.shared),
    ]


@pytest.mark.parametrize("double_policy", [Train.lora], indirect=True)
def test_refreshes_and_amortised_steps_have_the_same_gradients(
    case: Any, double_policy: Any, offload_now: Any
) -> None:
    expected = both(case, double_policy)
    offload_now()
    for found, wanted in zip(both(case, double_policy), expected, strict=True):
        assert distance(found.losses, wanted.losses) < 1e-10
        for row, other in zip(found.rows, wanted.rows, strict=True):
            assert distance(row, other) < 1e-10 or not (row.any() or other.any())
    assert all(parameter.grad is None for parameter in double_policy.parameters("trained").values())
