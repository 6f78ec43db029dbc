"""A step whose images have several sizes is the mean over its images, each at its own size, in float64."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from marble_cli.step.batches import chunks
from marble_cli.step.gradients import mixture_gradient, reward_gradients
from marble_cli.step.step_gram import velocity_gram
from tests.step.conftest import Reference, flat
from tests.step.directions import distance
from tests.step.test_gradients import WEIGHTS, coefficients

WIDE = [0, 1, 2, 7, 11]  # of twelve images; micro-batches hold five at most


@pytest.fixture(scope="module")
def mixed(case: Any) -> Any:
    """The case with images twice as wide among the others."""
    draw = torch.Generator().manual_seed(8)
    x0 = [*case.data.x0]
    for i in WIDE:
        channels, height, width = x0[i].shape
        wide = torch.randn(channels, height, 2 * width, generator=draw, dtype=torch.float64)
        x0[i] = wide.to(x0[i].device)
    return replace(case, data=replace(case.data, x0=x0))


def test_gradients_are_those_of_the_definition_image_by_image(mixed: Any, double_policy: Any) -> None:
    positive, negative, kl = mixed.definition(double_policy)
    reference = Reference(
        positive, negative, flat(mixed.objective.kl_coef * kl, double_policy), double_policy
    )
    signal, step = mixed.signal, mixed.step(double_policy)
    parts = chunks(mixed.data, mixed.objective.micro_batch_size)
    made = coefficients(signal)
    rows = reward_gradients(step, parts, made.rewards, made.shared).rows.cpu()
    expected = [reference.gradient(signal.optimality[k], signal.applicable[k]) for k in range(4)]
    for row, other in zip(rows, expected, strict=False):
        assert distance(row, other) < 1e-10
    assert distance(rows[5], reference.kl) < 1e-10
    combined = sum(weight * row for weight, row in zip(WEIGHTS, expected, strict=False)) + reference.kl
    one_pass = mixture_gradient(step, parts, made.combined(WEIGHTS)).rows[0].cpu()
    assert distance(one_pass, combined) < 1e-10


def test_a_step_is_the_sum_of_what_each_size_gives_alone(mixed: Any, double_policy: Any) -> None:
    """Micro-batches of one size each; the samples of both sizes count alike, whatever their pixels."""
    data, made = mixed.data, coefficients(mixed.signal)
    others = [i for i in range(12) if i not in WIDE]
    found = []
    for rows in (WIDE, others, range(12)):
        own = torch.tensor([*rows])
        part = replace(
            data,
            x0=[data.x0[i] for i in rows],
            embeddings=data.embeddings[own],
            indices=data.indices[own],
            draws=data.draws[own],
            times=data.times[own],
        )
        step = replace(mixed, data=part).step(double_policy)
        parts = chunks(part, 5)
        assert all(len({part.x0[row].shape for row in chunk.rows.tolist()}) == 1 for chunk in parts)
        gradients = reward_gradients(step, parts, made.rewards, made.shared)
        found.append((gradients.rows[:4].cpu(), gradients.losses, velocity_gram(step, parts, made.rewards)))
    for wide, other, whole in zip(*found, strict=True):
        assert distance(wide + other, whole) < 1e-10
