"""Which samples a micro-batch holds, at which times and with which noise."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from marble_cli.config.enums import TrainingTimes
from marble_cli.seeds import generator
from marble_cli.step.batches import Chunk, NoisedBatch, chunks, noised_batches, split, training_times

STEP = 7


def epsilon(batch: NoisedBatch) -> Tensor:
    """The noise that went into a batch, [B, C, H, W]."""
    t = batch.t[:, None, None, None]
    return (batch.xt - (1 - t) * batch.x0) / t


def test_noise_depends_on_draw_and_time_alone(case: Any) -> None:
    data, seed = case.data, case.objective.seed
    first, second = noised_batches(data, chunks(data, 12), seed, STEP)
    for batch, whole in zip(
        noised_batches(data, chunks(data, 5), seed, STEP), [first] * 3 + [second] * 3, strict=True
    ):
        assert torch.equal(batch.xt, whole.xt[batch.indices])
    eps = epsilon(first)
    torch.testing.assert_close(eps[::2], eps[1::2])
    assert torch.pdist(eps[::2].flatten(1)).min() > 5
    assert (eps - epsilon(second)).flatten(1).norm(dim=1).min() > 5
    assert abs(eps[::2].std() - 1) < 0.1
    for other in (
        next(noised_batches(data, chunks(data, 12), seed + 1, STEP)),
        next(noised_batches(data, chunks(data, 12), seed, STEP + 1)),
    ):
        assert (eps - epsilon(other)).flatten(1).norm(dim=1).min() > 5


TIMES = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.1])


def test_training_leaves_out_the_last_time() -> None:
    assert sorted(training_times(TIMES, 0.99, None, [0], 0, 1)[0].tolist()) == sorted(TIMES[:4].tolist())
    assert sorted(training_times(TIMES, 1.0, None, [0], 0, 1)[0].tolist()) == sorted(TIMES.tolist())
    assert sorted(training_times(TIMES, 0.6, None, [0], 0, 1)[0].tolist()) == sorted(TIMES[:3].tolist())
    assert training_times(TIMES[:1], 0.99, 3, [0, 1], 0, 1).tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize(
    ("fraction", "wanted", "count"), [(0.99, None, 24), (0.99, 3, 3), (0.5, None, 12), (1.0, 25, 25)]
)
def test_as_published_any_time_may_be_left_out(fraction: float, wanted: int | None, count: int) -> None:
    """Each image takes its own `count` of the 25, in any order, the last as often as any other."""
    times, images = torch.linspace(1, 0.01, 25), list(range(2000))
    drawn = training_times(times, fraction, wanted, images, 0, 1, TrainingTimes.any)
    assert drawn.shape == (2000, count)
    assert all(len(set(row)) == count for row in drawn.tolist())
    shares = torch.stack([(drawn == t).any(1).double().mean() for t in times])
    torch.testing.assert_close(shares, torch.full_like(shares, count / 25), rtol=0, atol=0.04)
    firsts = torch.stack([(drawn[:, 0] == t).double().mean() for t in times])
    torch.testing.assert_close(firsts, torch.full_like(firsts, 1 / 25), rtol=0, atol=0.02)
    again = training_times(times, fraction, wanted, images[7:9], 0, 1, TrainingTimes.any)
    assert torch.equal(again, drawn[7:9])


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


def test_micro_batches_hold_every_sample_once_and_neighbours_apart(case: Any) -> None:
    parts = chunks(case.data, 5)
    assert [len(part.rows) for part in parts] == [4] * 6
    for column in (0, 1):
        rows = torch.cat([part.rows for part in parts if part.column == column])
        assert sorted(rows.tolist()) == list(range(12))
    assert parts[0].rows.tolist() == [0, 3, 6, 9]


@given(count=st.integers(1, 60), fraction=st.floats(0.01, 1.0))
def test_a_share_of_the_micro_batches_is_spread_evenly(count: int, fraction: float) -> None:
    parts = [Chunk(torch.tensor([i]), 0) for i in range(count)]
    chosen, others = split(parts, fraction)
    assert sorted(int(part.rows) for part in chosen + others) == list(range(count))
    assert len(chosen) == max(1, round(fraction * count))
    places = [int(part.rows) for part in chosen]
    gaps = [b - a for a, b in itertools.pairwise(places)]
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(("fraction", "chosen"), [(1.0, 6), (0.5, 3), (1e-9, 1)])
def test_at_least_one_micro_batch_is_chosen(case: Any, fraction: float, chosen: int) -> None:
    assert len(split(chunks(case.data, 5), fraction)[0]) == chosen
