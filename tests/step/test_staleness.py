"""How long shares are cached: a refresh measures the change since the last one against its noise."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from marble_cli.balance.cache import DirectionCache
from marble_cli.balance.gram import gram
from marble_cli.balance.marble import LeastNorm
from marble_cli.config.schema import RunConfig
from marble_cli.distributed.ranks import Ranks
from marble_cli.objective.coefficients import Coefficients
from marble_cli.step.direction import Alternating, Descent, Direction
from marble_cli.step.gradients import Gradients
from marble_cli.step.reward_signal import Signal, read_signal
from marble_cli.step.staleness import Staleness, fold, in_halves, measure_staleness

STALE = ("balance.refresh_when=stale", "balance.refresh_every=8")
STEP = 7


def test_halves_of_a_loss_add_up_to_it_and_share_no_prompt() -> None:
    losses = Coefficients(torch.rand(3, 6).double(), torch.rand(3, 6).double())
    groups = torch.tensor([0, 0, 1, 1, 2, 2])
    halves = in_halves(losses, groups)
    torch.testing.assert_close(halves.p[:3] + halves.p[3:], losses.p, rtol=0, atol=0)
    torch.testing.assert_close(halves.q[:3] + halves.q[3:], losses.q, rtol=0, atol=0)
    assert not (halves.p[:3].any(0) & halves.p[3:].any(0)).any()
    assert halves.p[3:].any(0).tolist() == [False, False, True, True, False, False]


def test_the_gram_matrix_of_whole_gradients_follows_from_their_halves() -> None:
    halves = torch.randn(6, 40, dtype=torch.float64)
    torch.testing.assert_close(fold(gram(halves)), gram(halves[:3] + halves[3:]))


def test_halves_are_added_up_in_the_memory_that_they_have() -> None:
    """Copies would be the largest thing that training all weights ever holds."""
    rows = torch.randn(7, 40, dtype=torch.float64)
    losses = torch.arange(8, dtype=torch.float64)
    expected = torch.cat([rows[:3] + rows[3:6], rows[6:]])
    folded = Gradients(rows, losses, torch.zeros(2)).folded()
    assert folded.rows.equal(expected)
    assert folded.rows.data_ptr() == rows.data_ptr()
    assert folded.losses.tolist() == [3.0, 5.0, 7.0, 6.0, 7.0]


def direct(descent: Descent, case: Any, cache: DirectionCache, signal: Signal | None = None) -> Direction:
    return descent.direct(STEP, signal or case.signal, case.data, cache, lambda count: None)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_measuring_staleness_leaves_the_direction_as_it_is(
    descent: Callable[..., Descent], case: Any, fraction: float
) -> None:
    share = f"balance.refresh_fraction={fraction}"
    plain = direct(descent(share), case, DirectionCache())
    paced = direct(descent(share, *STALE), case, DirectionCache())
    assert float((paced.gradient - plain.gradient).norm() / plain.gradient.norm()) < 1e-9
    for key, value in plain.metrics.items():
        if not key.endswith(("seconds", "gap")):
            assert paced.metrics[key] == pytest.approx(value, rel=1e-8, abs=1e-9), key


def test_a_refresh_tells_the_step_of_the_next(
    descent: Callable[..., Descent], case: Any, run_config: Callable[..., RunConfig]
) -> None:
    everywhere = torch.ones_like(case.signal.applicable)
    rewards = torch.randn(everywhere.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = descent(*STALE)
    settings = run_config().algorithm
    signal = read_signal(rewards, everywhere, case.signal.groups, settings)
    assert isinstance(made.strategy, Alternating)
    schedule = made.strategy.schedule
    first = direct(made, case, DirectionCache(), signal)
    assert "balance/staleness" not in first.metrics, "nothing was cached"
    assert (first.cache.interval, first.cache.due) == (1, STEP + 1)
    again = direct(made, case, replace(first.cache, interval=4, due=STEP), signal)
    assert again.metrics["balance/staleness"] < again.metrics["balance/staleness_noise"], "the same step"
    assert (again.cache.interval, again.cache.due) == (8, STEP + 8)
    assert again.metrics["balance/refresh_interval"] == 8
    warming = direct(descent(*STALE, f"balance.warmup={STEP}"), case, replace(first.cache, due=STEP), signal)
    assert (warming.cache.interval, warming.cache.due) == (1, STEP + 1), "what it compares is one step old"
    due = [step for step in range(STEP + 1, STEP + 12) if schedule.refreshes(step, again.cache)]
    assert due == list(range(STEP + 8, STEP + 12)), "due until a refresh is taken"


@pytest.mark.parametrize(
    ("change", "interval", "following"), [(0.3, 8, 4), (0.3, 1, 1), (0.1, 4, 8), (0.1, 8, 10), (0.2, 2, 4)]
)
def test_the_interval_halves_or_doubles_within_its_bounds(
    change: float, interval: int, following: int
) -> None:
    assert Staleness(change, noise=0.2).next_interval(interval, longest=10) == following


def refreshes(mean: Tensor, draw: torch.Generator, count: int) -> list[Tensor]:
    """Return noisy gradients [2 K, P] in halves, all with the same mean [K, P] and noise of unit length."""
    halves = torch.cat([mean, mean]) / 2
    noise = torch.randn(count, *halves.shape, generator=draw, dtype=torch.float64)
    return list(halves + noise / (2 * mean.shape[1]) ** 0.5)


def measured(earlier: list[Tensor], later: list[Tensor]) -> list[Staleness]:
    """Measure every refresh of `later` against the cached shares of one of `earlier`."""
    balance, results = LeastNorm(), []
    for before, now in zip(earlier, later, strict=True):
        past = fold(gram(before))
        cache = DirectionCache().update(balance(past), past.diagonal().sqrt(), 0.0)
        found = measure_staleness(balance, gram(now), cache, Ranks())
        assert found is not None
        results.append(found)
    return results


def test_noise_alone_does_not_exceed_itself_and_a_change_does() -> None:
    draw = torch.Generator().manual_seed(0)
    mean = 4 * torch.randn(4, 60, generator=draw, dtype=torch.float64) / 60**0.5
    mean[1] -= mean[0]  # a conflict
    other = mean.clone()
    other[2] -= 1.5 * mean[3]
    earlier = refreshes(mean, draw, 200)
    same, changed = (measured(earlier, refreshes(late, draw, 200)) for late in (mean, other))
    assert sum(found.change for found in same) <= sum(found.noise for found in same)
    assert sum(found.change > found.noise for found in same) < 100
    assert sum(found.change > found.noise for found in changed) > 190


def test_staleness_is_unknown_if_one_half_lacks_a_reward_or_nothing_is_cached() -> None:
    halves = torch.randn(4, 20, dtype=torch.float64)
    balance, cache = LeastNorm(), DirectionCache(torch.ones(2).double(), torch.ones(2).double())
    assert measure_staleness(balance, gram(halves), DirectionCache(), Ranks()) is None
    assert measure_staleness(balance, gram(halves), cache, Ranks()) is not None
    halves[3] = 0.0
    assert measure_staleness(balance, gram(halves), cache, Ranks()) is None
    halves[1] = 0.0  # the share of one reward is 1, whatever it is compared with
    assert measure_staleness(balance, gram(halves), cache, Ranks()) is None
