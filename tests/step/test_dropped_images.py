"""A step without the images of dead groups: fewer samples, and the direction that the definition says."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from marble_cli.config.enums import DeadGroups
from marble_cli.objective.coefficients import Coefficients
from marble_cli.step.batches import chunks
from marble_cli.step.gradients import mixture_gradient
from marble_cli.step.reward_signal import Signal
from marble_cli.step.selection import choose_images
from tests.step.directions import CACHE, NAMES, DescentMaker, direct, distance

LEFT = torch.tensor([0, 1, 2, 8, 9, 10, 11])  # the middle group is dead


def without(case: Any) -> Any:
    """The case with scores that are equal in the middle group, trained on without that group."""
    signal = case.signal
    dead = signal.groups == 1
    flat = replace(
        signal,
        rewards=signal.rewards.masked_fill(dead, 0.25).masked_fill(~signal.applicable, torch.nan),
        advantage=signal.advantage.masked_fill(dead, 0.0),
        optimality=signal.optimality.masked_fill(dead, 0.5),
    )
    return replace(case, signal=flat, data=subset(case.data, flat))


def subset(data: Any, signal: Signal) -> Any:
    weights = choose_images(signal, DeadGroups.drop)
    assert weights is not None
    assert weights.trained.nonzero().flatten().tolist() == LEFT.tolist()
    return replace(
        data,
        x0=data.x0[LEFT.to(data.x0.device)],
        embeddings=data.embeddings[LEFT],
        indices=LEFT,
        draws=data.draws[LEFT],
        times=data.times[LEFT],
        weights=weights,
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ("balance.mode=full", "balance.refresh_fraction=0.5"),
        ("balance.refresh_every=1000", "balance.warmup=0"),
        ("balance=output_space", "balance.refresh_every=1000", "balance.warmup=0"),
    ],
    ids=["refresh", "amortised", "output_space"],
)
def test_direction_is_that_of_all_images_but_for_the_shared_term(
    descent: DescentMaker, case: Any, double_policy: Any, reference: Any, overrides: tuple[str, ...]
) -> None:
    """The rewards' own gradients stay those of all 12 images; the shared and the KL term are means over 7."""
    left, samples = without(case), []
    made = descent(*overrides)
    found = made.direct(7, left.signal, left.data, CACHE, samples.append)
    assert sum(samples) == 14
    signal = left.signal
    scored = signal.applicable.any(0)
    scored[signal.groups == 1] = False
    weights = [found.metrics.get(f"balance/weight/{name}", 0.0) for name in NAMES]
    expected = reference.shared(scored)
    for k, weight in enumerate(weights[:4]):
        mask = signal.applicable[k]
        expected += weight * (reference.gradient(signal.optimality[k], mask) - reference.shared(mask))
    alone = replace(case, data=replace(left.data, weights=None, samples=14))
    nothing = Coefficients(torch.zeros(12).double(), torch.zeros(12).double())
    expected += mixture_gradient(alone.step(double_policy), chunks(alone.data, 5), nothing).rows[0].cpu()
    assert distance(found.gradient.cpu(), expected) < 1e-9
    assert distance(direct(made, replace(left, data=case.data)).gradient, expected) > 1e-6


def test_kept_groups_and_a_step_that_is_all_dead_are_trained_on(case: Any) -> None:
    signal = case.signal
    assert choose_images(without(case).signal, DeadGroups.keep) is None
    silent = replace(signal, rewards=torch.zeros_like(signal.rewards))
    assert choose_images(silent, DeadGroups.drop) is None
