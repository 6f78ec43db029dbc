"""The KL term on a share of the micro-batches: its expected gradient is the whole step's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from marble_cli.config.enums import SharedTerm
from marble_cli.config.schema import RunConfig
from marble_cli.objective.coefficients import reward_coefficients
from marble_cli.step import step_gram
from marble_cli.step.batches import Chunk, chunks, draw_kl, thin_kl
from marble_cli.step.gradients import Gradients, mixture_gradient, reward_gradients
from tests.step.directions import STEP, DescentMaker, direct, distance


def parts_of(count: int, columns: int) -> list[Chunk]:
    return [Chunk(torch.tensor([i]), column) for column in range(columns) for i in range(count)]


def weights(parts: list[Chunk]) -> Tensor:
    return torch.tensor([part.kl_weight for part in parts])


@given(count=st.integers(1, 8), columns=st.integers(1, 8), share=st.floats(0, 1))
def test_over_the_offsets_every_micro_batch_weighs_one_in_the_mean(
    count: int, columns: int, share: float
) -> None:
    parts = parts_of(count, columns)
    every = max(1, round(share * len(parts)))
    drawn = torch.stack([weights(thin_kl(parts, every, offset)) for offset in range(every)])
    assert torch.equal(drawn.mean(0), torch.ones(len(parts)))
    assert ((drawn > 0).sum(0) == 1).all()
    kept = (drawn > 0).sum(1)
    assert kept.min() >= 1
    assert kept.max() - kept.min() <= 1


@pytest.mark.parametrize(("every", "used"), [(1, 1), (3, 3), (6, 6), (100, 6)])
def test_the_draw_is_even_over_the_steps_and_keeps_at_least_one(every: int, used: int) -> None:
    parts = parts_of(3, 2)
    drawn = torch.stack([weights(draw_kl(parts, every, 0, step)) for step in range(1, 1201)])
    assert set(drawn.unique().tolist()) <= {0.0, float(used)}
    assert (drawn > 0).any(1).all()
    torch.testing.assert_close(drawn.mean(0), torch.ones(6), rtol=0, atol=4 * ((used - 1) / 1200) ** 0.5)
    again = torch.stack([weights(draw_kl(parts, every, 0, step)) for step in (3, 900)])
    assert torch.equal(again, drawn[[2, 899]]), "a resumed run draws the same"
    other = torch.stack([weights(draw_kl(parts, every, 1, step)) for step in range(1, 1201)])
    assert torch.equal(other, drawn) == (used == 1)


def test_a_divisor_of_the_times_draws_the_same_samples_for_any_micro_batch_size(case: Any) -> None:
    kept = []
    for size in (12, 5, 1):
        parts = draw_kl(chunks(case.data, size), 2, 0, STEP)
        samples = [(int(row), part.column) for part in parts if part.kl_weight for row in part.rows]
        kept.append(sorted(samples))
    assert kept[0] == kept[1] == kept[2]
    assert len(kept[0]) == 12


def both(case: Any, policy: Any, parts: list[Chunk], shared_term: SharedTerm) -> list[Gradients]:
    signal, step = case.signal, case.step(policy)
    made = reward_coefficients(signal.optimality, signal.applicable, shared_term=shared_term)
    mixture = made.combined(torch.ones(5, dtype=torch.float64))
    return [
        reward_gradients(step, parts, made.rewards, made.shared),
        mixture_gradient(step, parts, mixture),
    ]


@pytest.mark.parametrize(("every", "shared_term"), [(3, SharedTerm.outside), (4, SharedTerm.inside)])
def test_the_mean_gradient_of_all_draws_is_that_of_every_micro_batch(
    case: Any, double_policy: Any, every: int, shared_term: SharedTerm
) -> None:
    parts = chunks(case.data, 5)
    draws = [both(case, double_policy, thin_kl(parts, every, offset), shared_term) for offset in range(every)]
    for found, whole in zip(
        zip(*draws, strict=True), both(case, double_policy, parts, shared_term), strict=True
    ):
        assert distance(torch.stack([one.rows for one in found]).mean(0), whole.rows) < 1e-12
        assert distance(torch.stack([one.losses for one in found]).mean(0), whole.losses) < 1e-12
        assert distance(found[0].rows[-1], whole.rows[-1]) > 1e-4
        assert distance(found[0].losses[-1:], whole.losses[-1:]) > 1e-4


@pytest.mark.parametrize(
    "overrides",
    [
        ("balance.mode=full", "balance.refresh_fraction=0.5"),
        ("balance.refresh_every=1000", "balance.warmup=0"),
        ("balance=output_space", "balance.refresh_every=1000", "balance.warmup=0"),
    ],
    ids=["refresh", "amortised", "output_space"],
)
def test_the_mean_direction_of_all_draws_is_that_of_every_micro_batch(
    descent: DescentMaker, case: Any, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    whole, passes = direct(descent(*overrides), case), []
    made = descent(*overrides, "algorithm.kl_every=3")
    velocity, found = made.policy.velocity, []

    def counted(xt: Tensor, t: Tensor, embeddings: Any, adapter: Any) -> Tensor:
        passes.append(adapter)
        return velocity(xt, t, embeddings, adapter)

    monkeypatch.setattr(made.policy, "velocity", counted)
    for offset in range(3):
        monkeypatch.setattr(
            step_gram, "draw_kl", lambda parts, every, *key, at=offset: thin_kl(parts, every, at)
        )
        found.append(direct(made, case))
        assert passes.count(None) == 2 * (offset + 1)
    assert distance(torch.stack([one.gradient for one in found]).mean(0), whole.gradient) < 1e-12
    kl = [one.metrics["loss/kl"] for one in found]
    assert sum(kl) / 3 == pytest.approx(whole.metrics["loss/kl"], rel=1e-12)
    assert len(set(kl)) == 3


def test_by_default_every_micro_batch_has_a_kl_term(run_config: Callable[..., RunConfig]) -> None:
    assert run_config().algorithm.kl_every == 1
