"""The steps that refresh."""

from collections.abc import Callable

import pytest
import torch

from marble_cli.balance.cache import DirectionCache
from marble_cli.config.counts import geometry, is_refresh, refreshes
from marble_cli.config.schema import RunConfig
from marble_cli.step.direction import Alternating, Descent, Refresh
from tests.step.directions import CACHE, DescentMaker


def schedule(descent: Descent, cache: DirectionCache = CACHE, steps: int = 9) -> list[int]:
    """The steps that refresh."""
    if isinstance(descent.strategy, Refresh):
        return list(range(1, steps + 1))
    assert isinstance(descent.strategy, Alternating)
    chosen = descent.strategy.schedule
    return [step for step in range(1, steps + 1) if chosen.refreshes(step, cache)]


def test_refreshes_come_after_a_warm_up_and_then_in_turn(descent: DescentMaker) -> None:
    def chosen(*overrides: str) -> list[int]:
        return schedule(descent(*overrides))

    assert chosen("balance.refresh_every=4", "balance.warmup=0") == [1, 5, 9]
    assert chosen("balance.refresh_every=4", "balance.warmup=3") == [1, 2, 3, 5, 9]
    assert chosen("balance.refresh_every=1") == list(range(1, 10))
    assert chosen("balance.mode=full") == list(range(1, 10))
    assert chosen("balance.refresh_every=100") == [1]
    assert schedule(descent("balance.refresh_every=4"), DirectionCache()) == list(range(1, 10))
    assert schedule(descent("balance=weighted_sum", "balance.refresh_every=4"), DirectionCache()) == [
        1,
        5,
        9,
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        ["balance.refresh_every=4", "balance.warmup=0"],
        ["balance.refresh_every=4", "balance.warmup=3"],
        ["balance.mode=full"],
        ["balance=weighted_sum", "balance.refresh_every=3"],
    ],
)
def test_refreshes_are_as_many_as_the_descent_makes(
    run_config: Callable[..., RunConfig], overrides: list[str], descent: Callable[..., Descent]
) -> None:
    known = DirectionCache(torch.ones(5), torch.ones(5))
    strategy = descent(*overrides).strategy
    expected = 20
    if isinstance(strategy, Alternating):
        expected = sum(strategy.schedule.refreshes(step, known) for step in range(1, 21))
    assert geometry(run_config("trainer.steps=20", *overrides)).refresh_steps == expected


@pytest.mark.parametrize("steps", [0, 1, 6, 7, 8])
@pytest.mark.parametrize("every", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("warmup", [0, 1, 2, 3, 7, 20])
def test_refreshes_are_counted_without_visiting_the_steps(steps: int, every: int, warmup: int) -> None:
    visited = sum(is_refresh(step, every, warmup) for step in range(1, steps + 1))
    assert refreshes(steps, every, warmup) == visited
    assert refreshes(10**18, every, 0) == -(-(10**18) // every)
