"""The step's gradients in float64 against docs/algorithm.md written out image by image."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from marble_cli.balance.amortise import DirectionCache, advantage_coefficients, amortised_coefficients
from marble_cli.losses.nft import coefficients
from marble_cli.randomness import generator
from marble_cli.trainer.gradients import (
    Gradients,
    NoisedBatch,
    gradients,
    noised_batches,
    training_times,
    velocity_gram,
)
from marble_cli.trainer.signal import cosine

STEP = 7
WEIGHTS = torch.tensor([0.7, 2.5, 0.02, 11.0, 3.0], dtype=torch.float64)


def nothing(count: int) -> None:
    pass


def take(policy: Any, case: Any, p: Tensor, q: Tensor) -> Gradients:
    return gradients(policy, case.data, case.objective, p, q, STEP, nothing)


def distance(got: Tensor, expected: Tensor) -> float:
    """Relative, in norm."""
    assert got.dtype == torch.float64
    return float((got - expected).norm() / expected.norm())


def test_the_case_is_a_hard_one(case: Any, reference: Any) -> None:
    signal = case.signal
    r = signal.optimality[signal.applicable]
    assert (r == 0).any()
    assert (r == 1).any()
    assert ((r > 0) & (r < 1)).any()
    counts = signal.applicable.sum(1).tolist()
    assert len(set(counts)) == 5
    assert counts[-1] == 0
    gradient = [
        reference.gradient(r, mask) for r, mask in zip(signal.optimality, signal.applicable, strict=True)
    ]
    assert min(cosine(gradient[0], gradient[k]) for k in range(1, 4)) < 0.99


@pytest.mark.parametrize("shared_term", ["inside", "outside"])
def test_every_rewards_gradient_is_its_definition(
    case: Any, double_policy: Any, reference: Any, shared_term: str
) -> None:
    signal = case.signal
    result = take(
        double_policy, case, *coefficients(signal.optimality, signal.applicable, shared_term=shared_term)
    )
    for k in range(4):
        expected = reference.gradient(signal.optimality[k], signal.applicable[k])
        if shared_term == "outside":
            expected = expected - reference.shared(signal.applicable[k])
        else:
            loss = reference.loss(signal.optimality[k], signal.applicable[k])
            assert result.losses[k].item() == pytest.approx(loss.item(), rel=1e-10)
        assert distance(result.rows[k], expected) < 1e-10
    assert not result.rows[4].any()
    assert distance(result.kl, reference.kl) < 1e-10


@pytest.mark.parametrize("shared_term", ["inside", "outside"])
def test_one_backward_pass_has_the_balanced_direction_as_its_gradient(
    case: Any, double_policy: Any, reference: Any, shared_term: str
) -> None:
    signal = case.signal
    p, q = amortised_coefficients(WEIGHTS, signal.optimality, signal.applicable, shared_term=shared_term)
    result = take(double_policy, case, p[None], q[None])
    expected = reference.kl.clone()
    for k in range(4):
        g = reference.gradient(signal.optimality[k], signal.applicable[k])
        if shared_term == "outside":
            g = g - reference.shared(signal.applicable[k])
        expected += WEIGHTS[k] * g
    if shared_term == "outside":
        expected += reference.shared(signal.applicable.any(0))
    assert not result.kl.any()
    assert distance(result.rows[0], expected) < 1e-10


def test_mixing_advantages_gives_another_direction(case: Any, double_policy: Any, reference: Any) -> None:
    signal = case.signal
    rows = [reference.gradient(signal.optimality[k], signal.applicable[k]) for k in range(4)]
    norms = torch.tensor([*(row.norm() for row in rows), 0.0], dtype=torch.float64)
    alpha = torch.tensor([0.4, 0.3, 0.2, 0.1, 0.0], dtype=torch.float64)
    weights = DirectionCache(alpha, norms).direction_weights()
    assert weights is not None
    exact = amortised_coefficients(weights, signal.optimality, signal.applicable)
    published = advantage_coefficients(alpha, signal.advantage, signal.applicable, case.objective.clip)
    true, other = (
        take(double_policy, case, p[None], q[None]).rows[0] - reference.kl for p, q in (exact, published)
    )
    unit = sum(a * row / row.norm() for a, row in zip(alpha[:4], rows, strict=True))
    assert distance(true, unit * norms[:4].mean()) < 1e-10
    assert cosine(true, other) < 0.99


@pytest.mark.parametrize("size", [1, 3, 100])
def test_the_micro_batch_size_changes_nothing(case: Any, double_policy: Any, size: int) -> None:
    p, q = coefficients(case.signal.optimality, case.signal.applicable)
    other = replace(case, objective=replace(case.objective, micro_batch_size=size))
    one, two = (take(double_policy, chosen, p, q) for chosen in (case, other))
    for k in range(4):
        assert distance(two.rows[k], one.rows[k]) < 1e-10
    assert distance(two.kl, one.kl) < 1e-10
    torch.testing.assert_close(two.losses, one.losses, rtol=1e-12, atol=0)


def test_the_ranks_parts_add_up(case: Any, double_policy: Any) -> None:
    p, q = coefficients(case.signal.optimality, case.signal.applicable)
    whole, data = take(double_policy, case, p, q), case.data
    parts = [
        replace(
            case,
            data=replace(
                data, x0=data.x0[own], embeddings=data.embeddings[own], indices=data.indices[own], draws=data.draws[own],
                times=data.times[own],
            ),
        )
        for own in (slice(0, 7), slice(7, 12))
    ]  # fmt: skip
    results = [take(double_policy, part, p, q) for part in parts]
    for k in range(4):
        assert distance(results[0].rows[k] + results[1].rows[k], whole.rows[k]) < 1e-10
    assert distance(results[0].kl + results[1].kl, whole.kl) < 1e-10
    assert distance(results[0].losses + results[1].losses, whole.losses) < 1e-10
    inner = [velocity_gram(double_policy, part.data, case.objective, p, q, STEP) for part in parts]
    assert (
        distance(inner[0] + inner[1], velocity_gram(double_policy, data, case.objective, p, q, STEP)) < 1e-10
    )


def test_progress_is_told_of_every_sample(case: Any, double_policy: Any) -> None:
    counts: list[int] = []
    p, q = coefficients(case.signal.optimality, case.signal.applicable)
    gradients(double_policy, case.data, case.objective, p[:1], q[:1], STEP, counts.append)
    assert counts == [5, 5, 2] * 2


@pytest.mark.parametrize("shared_term", ["inside", "outside"])
def test_the_velocity_gram_matrix_is_autograds(case: Any, double_policy: Any, shared_term: str) -> None:
    signal, objective = case.signal, case.objective
    p, q = coefficients(signal.optimality, signal.applicable, shared_term=shared_term)
    rows: list[list[Tensor]] = [[] for _ in p]
    for batch in noised_batches(case.data, objective, STEP):
        t = batch.t[:, None, None, None]
        with torch.no_grad():
            v_old = double_policy.velocity(batch.xt, batch.t, batch.embeddings, "behaviour")
            v = double_policy.velocity(batch.xt, batch.t, batch.embeddings, "trained")
        v.requires_grad_()
        plus = batch.xt - t * ((1 - objective.beta) * v_old + objective.beta * v) - batch.x0
        minus = batch.xt - t * ((1 + objective.beta) * v_old - objective.beta * v) - batch.x0
        halves = [e.square().flatten(1).mean(1) / e.detach().abs().flatten(1).mean(1) for e in (plus, minus)]
        for k, row in enumerate(rows):
            mixed = p[k, batch.indices] * halves[0] + q[k, batch.indices] * halves[1]
            loss = mixed.sum() * objective.clip / objective.beta / case.data.samples
            row.append(torch.autograd.grad(loss, v, retain_graph=True)[0].flatten())
    matrix = torch.stack([torch.cat(row) for row in rows])
    got = velocity_gram(double_policy, case.data, objective, p, q, STEP)
    assert distance(got, matrix @ matrix.T) < 1e-10
    assert torch.equal(got, got.T)
    assert not got[4].any()


def epsilon(batch: NoisedBatch) -> Tensor:
    """The noise that went into a batch, [B, C, H, W]."""
    t = batch.t[:, None, None, None]
    return (batch.xt - (1 - t) * batch.x0) / t


def test_noise_depends_on_draw_and_time_alone(case: Any) -> None:
    whole = replace(case.objective, micro_batch_size=12)
    batches = list(noised_batches(case.data, case.objective, STEP))
    first, second = noised_batches(case.data, whole, STEP)
    assert torch.equal(torch.cat([batch.xt for batch in batches]), torch.cat([first.xt, second.xt]))
    eps = epsilon(first)
    torch.testing.assert_close(eps[::2], eps[1::2])
    assert torch.pdist(eps[::2].flatten(1)).min() > 5
    assert (eps - epsilon(second)).flatten(1).norm(dim=1).min() > 5
    assert abs(eps[::2].std() - 1) < 0.1
    for other in (
        next(noised_batches(case.data, replace(whole, seed=1), STEP)),
        next(noised_batches(case.data, whole, STEP + 1)),
    ):
        assert (eps - epsilon(other)).flatten(1).norm(dim=1).min() > 5


TIMES = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.1])


def test_training_leaves_out_the_last_time() -> None:
    assert sorted(training_times(TIMES, 0.99, None, [0], 0, 1)[0].tolist()) == sorted(TIMES[:4].tolist())
    assert sorted(training_times(TIMES, 1.0, None, [0], 0, 1)[0].tolist()) == sorted(TIMES.tolist())
    assert sorted(training_times(TIMES, 0.6, None, [0], 0, 1)[0].tolist()) == sorted(TIMES[:3].tolist())
    assert training_times(TIMES[:1], 0.99, 3, [0, 1], 0, 1).tolist() == [[1.0], [1.0]]


def test_training_times_are_distinct_and_seeded_by_draw() -> None:
    images = list(range(200))
    drawn = training_times(TIMES, 0.99, 2, images, 0, 1)
    assert drawn.shape == (200, 2)
    assert (drawn[:, 0] != drawn[:, 1]).all()
    counts = torch.stack([(drawn == t).sum() for t in TIMES])
    assert counts[4] == 0
    assert counts[:4].min() > 60
    assert torch.equal(training_times(TIMES, 0.99, 2, images[50:60], 0, 1), drawn[50:60])
    assert not torch.equal(training_times(TIMES, 0.99, 2, images, 0, 2), drawn)
    assert not torch.equal(training_times(TIMES, 0.99, 2, images, 1, 1), drawn)
    expected = TIMES[:4][torch.randperm(4, generator=generator(0, "times", 1, 50))[:2]]
    assert torch.equal(drawn[50], expected)
