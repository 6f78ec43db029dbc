"""The step's gradients in float64 against docs/explanation/algorithm.md written out image by image."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from marble_cli.balance.cache import DirectionCache
from marble_cli.config.enums import Precision, SharedTerm, Train
from marble_cli.config.schema import ModelConfig
from marble_cli.objective.coefficients import (
    Coefficients,
    RewardCoefficients,
    advantage_coefficients,
    reward_coefficients,
)
from marble_cli.policy.load import load_policy
from marble_cli.step.batches import Chunk, chunks, noised_batches
from marble_cli.step.gradients import Gradients, mixture_gradient, reward_gradients
from marble_cli.step.step_gram import velocity_gram

STEP = 7
WEIGHTS = torch.tensor([0.7, 2.5, 0.02, 11.0, 3.0], dtype=torch.float64)


def parts(case: Any) -> list[Chunk]:
    return chunks(case.data, case.objective.micro_batch_size)


def coefficients(signal: Any, shared_term: str = "inside") -> RewardCoefficients:
    return reward_coefficients(signal.optimality, signal.applicable, shared_term=SharedTerm(shared_term))


def one_pass(policy: Any, case: Any, mixture: Coefficients) -> Gradients:
    return on_cpu(mixture_gradient(case.step(policy), parts(case), mixture))


def apart(policy: Any, case: Any, shared_term: str = "inside") -> Gradients:
    """Rows of the five rewards, and of the KL term with what is left outside the balance."""
    made = coefficients(case.signal, shared_term)
    return on_cpu(reward_gradients(case.step(policy), parts(case), made.rewards, made.shared))


@pytest.fixture(scope="session")
def apart_once(case: Any, double_policy: Any) -> Callable[[str], Gradients]:
    """`apart` of the case and its policy, taken once for all tests."""
    return cache(partial(apart, double_policy, case))


def on_cpu(gradients: Gradients) -> Gradients:
    return replace(gradients, rows=gradients.rows.cpu())


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


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
    case: Any, reference: Any, apart_once: Callable[[str], Gradients], shared_term: str
) -> None:
    signal, result = case.signal, apart_once(shared_term)
    for k in range(4):
        expected = reference.gradient(signal.optimality[k], signal.applicable[k])
        if shared_term == "outside":
            expected = expected - reference.shared(signal.applicable[k])
        else:
            loss = reference.loss(signal.optimality[k], signal.applicable[k])
            assert result.losses[k].item() == pytest.approx(loss.item(), rel=1e-10)
        assert distance(result.rows[k], expected) < 1e-10
    assert not result.rows[4].any()
    outside = reference.shared(signal.applicable.any(0)) if shared_term == "outside" else 0.0
    assert distance(result.rows[5], reference.kl + outside) < 1e-10


@pytest.mark.parametrize("shared_term", ["inside", "outside"])
def test_one_backward_pass_has_the_balanced_direction_as_its_gradient(
    case: Any, double_policy: Any, reference: Any, shared_term: str
) -> None:
    signal = case.signal
    result = one_pass(double_policy, case, coefficients(signal, shared_term).combined(WEIGHTS))
    expected = reference.kl.clone()
    for k in range(4):
        g = reference.gradient(signal.optimality[k], signal.applicable[k])
        if shared_term == "outside":
            g = g - reference.shared(signal.applicable[k])
        expected += WEIGHTS[k] * g
    if shared_term == "outside":
        expected += reference.shared(signal.applicable.any(0))
    assert distance(result.rows[0], expected) < 1e-10


def test_mixing_advantages_gives_another_direction(case: Any, double_policy: Any, reference: Any) -> None:
    signal = case.signal
    rows = [reference.gradient(signal.optimality[k], signal.applicable[k]) for k in range(4)]
    norms = torch.tensor([*(row.norm() for row in rows), 0.0], dtype=torch.float64)
    alpha = torch.tensor([0.4, 0.3, 0.2, 0.1, 0.0], dtype=torch.float64)
    weights = DirectionCache(alpha, norms).direction_weights()
    assert weights is not None
    exact = coefficients(signal).combined(weights)
    published = advantage_coefficients(alpha, signal.advantage, signal.applicable, case.objective.clip)
    true, other = (
        one_pass(double_policy, case, mixture).rows[0] - reference.kl for mixture in (exact, published)
    )
    unit = sum(a * row / row.norm() for a, row in zip(alpha[:4], rows, strict=True))
    assert distance(true, unit * norms[:4].mean()) < 1e-10
    assert cosine(true, other) < 0.99


@pytest.mark.parametrize(("size", "shared_term"), [(1, "outside"), (3, "inside"), (100, "outside")])
def test_the_micro_batch_size_changes_nothing(
    case: Any, double_policy: Any, apart_once: Callable[[str], Gradients], size: int, shared_term: str
) -> None:
    other = replace(case, objective=replace(case.objective, micro_batch_size=size))
    one, two = apart_once(shared_term), apart(double_policy, other, shared_term)
    for k in (0, 1, 2, 3, 5):
        assert distance(two.rows[k], one.rows[k]) < 1e-10
    torch.testing.assert_close(two.losses, one.losses, rtol=1e-12, atol=1e-15)


def test_gradients_of_the_ranks_parts_add_up(
    case: Any, double_policy: Any, apart_once: Callable[[str], Gradients]
) -> None:
    whole, data = apart_once("inside"), case.data
    halves = [
        replace(
            case,
            data=replace(
                data,
                x0=data.x0[own],
                embeddings=data.embeddings[own],
                indices=data.indices[own],
                draws=data.draws[own],
                times=data.times[own],
            ),
        )
        for own in (slice(0, 7), slice(7, 12))
    ]
    results = [apart(double_policy, half) for half in halves]
    for k in (0, 1, 2, 3, 5):
        assert distance(results[0].rows[k] + results[1].rows[k], whole.rows[k]) < 1e-10
    assert distance(results[0].losses + results[1].losses, whole.losses) < 1e-10
    rewards = coefficients(case.signal).rewards
    inner = [velocity_gram(half.step(double_policy), parts(half), rewards) for half in (*halves, case)]
    assert distance(inner[0] + inner[1], inner[2]) < 1e-10


def test_padding_counts_nothing(
    case: Any, double_policy: Any, apart_once: Callable[[str], Gradients]
) -> None:
    """The images once more, as padding; micro-batches hold images, padding or both."""
    twice, data = torch.arange(12).repeat(2), case.data
    padded = replace(
        case,
        data=replace(
            data,
            x0=data.x0[twice],
            embeddings=data.embeddings[twice],
            indices=data.indices[twice],
            draws=data.draws[twice],
            times=data.times[twice],
            real=torch.arange(24) < 12,
        ),
        objective=replace(case.objective, micro_batch_size=8),
    )
    for shared_term in ("inside", "outside"):
        got, expected = apart(double_policy, padded, shared_term), apart_once(shared_term)
        for row, other in zip(got.rows, expected.rows, strict=True):
            assert distance(row, other) < 1e-10 or not other.any()
        torch.testing.assert_close(got.losses, expected.losses, rtol=1e-10, atol=1e-15)
    mixture = coefficients(case.signal).combined(WEIGHTS)
    got, expected = (one_pass(double_policy, one, mixture) for one in (padded, case))
    assert distance(got.rows[0], expected.rows[0]) < 1e-10
    assert distance(got.losses, expected.losses) < 1e-10
    rewards = coefficients(case.signal).rewards
    grams = [velocity_gram(one.step(double_policy), parts(one), rewards) for one in (padded, case)]
    assert distance(*grams) < 1e-10


def test_progress_is_told_of_every_sample(case: Any, double_policy: Any) -> None:
    counts: list[int] = []
    p, q = case.signal.optimality, 1 - case.signal.optimality
    step = replace(case.step(double_policy), advance=counts.append)
    mixture_gradient(step, parts(case), Coefficients(p[0], q[0]))
    assert counts == [4, 4, 4] * 2


@pytest.mark.parametrize("shared_term", ["inside", "outside"])
def test_the_velocity_gram_matrix_is_autograds(case: Any, double_policy: Any, shared_term: str) -> None:
    signal, objective = case.signal, case.objective
    rewards = coefficients(signal, shared_term).rewards
    rows: list[list[Tensor]] = [[] for _ in rewards.p]
    for batch in noised_batches(case.data, parts(case), objective.seed, STEP):
        t = batch.t[:, None, None, None]
        with torch.no_grad():
            v_old = double_policy.velocity(batch.xt, batch.t, batch.embeddings, "behaviour")
            v = double_policy.velocity(batch.xt, batch.t, batch.embeddings, "trained")
        v.requires_grad_()
        plus = batch.xt - t * ((1 - objective.beta) * v_old + objective.beta * v) - batch.x0
        minus = batch.xt - t * ((1 + objective.beta) * v_old - objective.beta * v) - batch.x0
        halves = [e.square().flatten(1).mean(1) / e.detach().abs().flatten(1).mean(1) for e in (plus, minus)]
        for k, row in enumerate(rows):
            p, q = (part.to(v.device) for part in rewards.of(batch.indices.cpu()))
            mixed = p[k] * halves[0] + q[k] * halves[1]
            loss = mixed.sum() * objective.clip / objective.beta / case.data.samples
            row.append(torch.autograd.grad(loss, v, retain_graph=True)[0].flatten())
    matrix = torch.stack([torch.cat(row) for row in rows])
    got = velocity_gram(case.step(double_policy), parts(case), rewards)
    assert distance(got, (matrix @ matrix.T).cpu()) < 1e-10
    assert torch.equal(got, got.T)
    assert not got[4].any()


@pytest.mark.parametrize("double_policy", [Train.lora], indirect=True)  # the policy is of its own
@pytest.mark.parametrize("train", list(Train))
def test_half_precision_keeps_the_gradients_of_a_large_step(
    case: Any, model: ModelConfig, randomise: Callable[..., None], train: Train
) -> None:
    """One sample of ten million moves a velocity by less than float16 can tell from zero."""
    signal = case.signal
    made = coefficients(signal, "outside")
    rewards, rest = made.rewards, made.shared
    data = replace(case.data, x0=case.data.x0.float(), samples=10_000_000)
    found = []
    for chosen in (Precision.fp32, Precision.fp16, Precision.bf16):
        policy = load_policy(replace(model, precision=chosen, train=train), seed=0)
        randomise(policy)
        embeddings = policy.encode(["a red cup", "two boats", 'a sign that says "3"'])[signal.groups]
        step = replace(case.step(policy), data=replace(data, embeddings=embeddings))
        two = chunks(data, 12)  # micro-batches, whose cotangents are rescaled each by its own factor
        found.append([reward_gradients(step, two, rewards, rest), mixture_gradient(step, two, rest)])
    for full, half in [pair for halves in found[1:] for pair in zip(found[0], halves, strict=True)]:
        for row, expected in zip(half.rows, full.rows, strict=True):
            assert row.dtype == torch.float32
            assert distance(row.double(), expected.double()) < 0.05 or not expected.any()
