"""Steps that leave images out: fewer samples, and the direction that the definition says."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from marble_cli.config.enums import DeadGroups, SharedTerm
from marble_cli.distributed.ranks import Ranks
from marble_cli.objective.coefficients import Coefficients, reward_coefficients
from marble_cli.objective.image_weights import ImageWeights
from marble_cli.step.batches import chunks, split
from marble_cli.step.gradients import mixture_gradient, reward_gradients
from marble_cli.step.reward_signal import Signal
from marble_cli.step.selection import choose_images
from tests.step.conftest import BETA, CLIP, flat
from tests.step.directions import CACHE, NAMES, DescentMaker, direct, distance, only_lora


def choose(signal: Signal, dead: DeadGroups, fraction: float = 1.0, step: int = 3) -> ImageWeights | None:
    return choose_images(signal, dead, fraction, 0, step, Ranks())


def weighed(signal: Signal, dead: DeadGroups, fraction: float) -> ImageWeights:
    weights = choose(signal, dead, fraction)
    assert weights is not None
    return weights


def trained_on(case: Any, weights: ImageWeights) -> Any:
    """The case, trained on the images of these weights alone."""
    data, left = case.data, weights.trained.nonzero().flatten()
    chosen = replace(
        data,
        x0=data.x0[left.to(data.x0.device)],
        embeddings=data.embeddings[left],
        indices=left,
        draws=data.draws[left],
        times=data.times[left],
        weights=weights,
    )
    return replace(case, data=chosen)


def silenced(signal: Signal) -> Signal:
    """The same scores, but for the middle one of three groups, where they are equal."""
    dead = signal.groups == 1
    return replace(
        signal,
        rewards=signal.rewards.masked_fill(dead, 0.25).masked_fill(~signal.applicable, torch.nan),
        advantage=signal.advantage.masked_fill(dead, 0.0),
        optimality=signal.optimality.masked_fill(dead, 0.5),
    )


def kl_gradient(case: Any, policy: Any, weights: ImageWeights) -> Tensor:
    """The KL term's gradient, image by image."""
    nothing = Coefficients(torch.zeros(12).double(), torch.zeros(12).double())
    total = torch.zeros(())
    for image in weights.trained.nonzero().flatten().tolist():
        alone = replace(weights, signal=torch.eye(12).double()[image])
        one = trained_on(case, alone)
        one = replace(one, data=replace(one.data, weights=None))
        found = mixture_gradient(one.step(policy), chunks(one.data, 5), nothing).rows[0]
        total = total + weights.kl[image] * found.cpu()
    return total


@pytest.mark.parametrize("fraction", [1.0, 0.6], ids=["dropped", "drawn"])
@pytest.mark.parametrize(
    "overrides",
    [
        ("balance.mode=full", "balance.refresh_fraction=0.5"),
        ("balance=output_space", "balance.refresh_every=1000", "balance.warmup=0"),
    ],
    ids=["refresh", "output_space"],
)
@only_lora
def test_direction_is_that_of_the_weighed_images(
    descent: DescentMaker,
    case: Any,
    double_policy: Any,
    reference: Any,
    overrides: tuple[str, ...],
    fraction: float,
) -> None:
    """Seven images are left of twelve, or four of these are drawn. The half of a refresh is amortised."""
    signal, samples = silenced(case.signal), list[int]()
    weights = weighed(signal, DeadGroups.drop, fraction)
    one = trained_on(case, weights)
    found = descent(*overrides).direct(7, signal, one.data, CACHE, samples.append)
    assert sum(samples) == (14 if fraction == 1 else 8)
    counts = signal.applicable.sum(1).clamp(min=1)
    found_weights = [found.metrics.get(f"balance/weight/{name}", 0.0) for name in NAMES]
    mix = torch.tensor(found_weights, dtype=torch.float64)
    signed = (signal.optimality - 0.5).masked_fill(~signal.applicable, 0.0)
    says = mix @ (signed / counts[:, None] * weights.signal)
    scored = signal.applicable.any(0).double()
    shared = scored / scored.sum() / 2 * weights.shared
    positive, negative = reference.positive, reference.negative
    loss = (says * (positive - negative) + shared * (positive + negative)).sum() * CLIP / BETA
    expected = flat(loss, double_policy) + kl_gradient(case, double_policy, weights)
    assert distance(found.gradient.cpu(), expected) < 1e-10


@only_lora
def test_norms_of_a_share_of_the_micro_batches_are_scaled_to_the_images_in_training(
    descent: DescentMaker, case: Any, double_policy: Any
) -> None:
    """Six images of 12 are drawn, with two times each; 9 of these 12 samples take gradients apart."""
    one = trained_on(case, weighed(case.signal, DeadGroups.keep, 0.5))
    settings = ("trainer.micro_batch_size=1", "balance.mode=full", "balance.refresh_fraction=0.75")
    found = direct(descent(*settings), one).metrics["balance/grad_norm/colorfulness"]
    assert case.signal.applicable[0].all()
    signal = case.signal
    made = reward_coefficients(signal.optimality, signal.applicable, shared_term=SharedTerm.outside)
    chosen, _ = split(chunks(one.data, 1), 0.75)
    rows = reward_gradients(one.step(double_policy), chosen, made.rewards, made.shared).rows
    assert found == pytest.approx(rows[0].norm().item() * 12 / 9, rel=1e-6)


@only_lora
def test_images_are_drawn_anew_at_each_step_and_alike_on_resume(case: Any) -> None:
    draws = [
        weights for step in (*range(60), 7) if (weights := choose(case.signal, DeadGroups.keep, 0.25, step))
    ]
    trained = torch.stack([weights.trained for weights in draws])
    assert (trained.sum(1) == 3).all()
    assert torch.equal(trained[7], trained[60])
    assert trained[:60].any(0).all(), "every image has a chance"


@only_lora
def test_steps_without_a_choice_train_on_all_images(case: Any) -> None:
    assert choose(silenced(case.signal), DeadGroups.keep) is None
    assert choose(case.signal, DeadGroups.drop) is None
    equal = replace(case.signal, rewards=torch.zeros_like(case.signal.rewards))
    assert choose(equal, DeadGroups.drop) is None
