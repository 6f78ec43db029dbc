"""Guards in a step: a refresh bends its direction, and an amortised step has that of the cached weights."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from marble_cli.balance import gram
from marble_cli.balance.cache import DirectionCache
from marble_cli.balance.constant import Fixed
from marble_cli.balance.guards import Guarded, Guards
from marble_cli.config.enums import Train
from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import BalanceError
from marble_cli.objective.advantages import advantage_sum, optimality
from marble_cli.step import decision
from marble_cli.step.direction import Direction
from marble_cli.step.staleness import measure_staleness
from tests.step.directions import NAMES, DescentMaker, direct, distance, rewards_gradients

# A margin that no direction of the others has by itself; the last reward applies nowhere.
GUARDS = ("rewards.third.role=guard", "rewards.third.margin=0.99", "rewards.nowhere.role=guard")
TRAINED = [0, 1, 3]

# What is trained is no matter of guards.
lora = pytest.mark.parametrize("double_policy", [Train.lora], ids=["lora"], indirect=True)


def weights_of(found: Direction) -> torch.Tensor:
    weights = [found.metrics.get(f"balance/weight/{name}", 0.0) for name in NAMES]
    return torch.tensor(weights, dtype=torch.float64)


@lora
def test_refresh_and_amortised_step_have_the_guarded_direction(
    descent: DescentMaker, case: Any, reference: Any
) -> None:
    made = descent(*GUARDS, "balance=marble", "balance.refresh_fraction=0.4", "balance.shared_term=outside")
    refresh = direct(made, case, DirectionCache())
    amortised = direct(made, case, replace(refresh.cache, due=99))
    weights, outside = weights_of(refresh), reference.kl + reference.shared(case.signal.applicable.any(0))
    expected = weights @ rewards_gradients(case, reference, outside=True) + outside
    assert (refresh.metrics["balance/refresh"], amortised.metrics["balance/refresh"]) == (1, 0)
    for found in (refresh, amortised):
        assert distance(found.gradient, expected) < 1e-10
        assert "balance/alpha/third" not in found.metrics
        assert not [key for key in found.metrics if key.startswith("balance/guard/nowhere")]
    torch.testing.assert_close(weights_of(amortised), weights, rtol=1e-10, atol=0.0)
    metrics = refresh.metrics
    assert (metrics["balance/guard/third/acted"], metrics["balance/guard/third/violation"]) == (1, 0)
    assert metrics["balance/guard/third/multiplier"] > 0.0
    assert metrics["balance/guard/third/cosine_before"] < 0.99
    assert metrics["balance/cosine/third"] > metrics["balance/guard/third/cosine_before"]
    assert refresh.warnings[0].startswith("left out of the balance: nowhere (zero gradient);")


@lora
def test_a_mixture_is_bent_and_falls_back_on_the_cached_weights(
    descent: DescentMaker, case: Any, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal, made = case.signal, descent(*GUARDS, "balance=advantage_sum", "balance.refresh_every=4")
    advantage, scored = advantage_sum(
        signal.advantage[TRAINED], signal.applicable[TRAINED], torch.ones(3).double()
    )
    mixture = reference.gradient(optimality(advantage[0], case.objective.clip), scored[0])
    guard = rewards_gradients(case, reference, outside=False)[2]
    refresh = direct(made, case, DirectionCache())
    amortised = direct(made, case, refresh.cache)
    monkeypatch.setattr(decision, "solve_once", _fail)
    failed = direct(replace(made, strategy=made.strategy.refresh), case, refresh.cache)  # type: ignore[attr-defined]
    with pytest.raises(BalanceError, match="no solver"):
        direct(made, case, DirectionCache())
    weight = refresh.metrics["balance/weight/third"]
    bent = mixture + weight * guard
    assert float(bent @ guard / guard.norm()) == pytest.approx(0.99 * float(mixture.norm()), rel=1e-8)
    for found in (refresh, amortised, failed):
        assert distance(found.gradient, bent + reference.kl) < 1e-10
        assert not [key for key in found.metrics if key.startswith("balance/alpha")]
    assert [found.metrics["balance/refresh"] for found in (refresh, amortised, failed)] == [1, 0, 1]
    assert amortised.metrics["balance/weight/third"] == pytest.approx(weight)
    assert failed.metrics["balance/failed"] == 1


def _fail(*_: Any) -> None:
    raise BalanceError("no solver")


@lora
def test_output_space_guards_velocities(descent: DescentMaker, case: Any, reference: Any) -> None:
    found = direct(descent(*GUARDS, "balance=output_space", "balance.shared_term=inside"), case)
    assert (found.metrics["balance/guard/third/acted"], found.metrics["balance/guard/third/violation"]) == (
        1,
        0,
    )
    expected = weights_of(found) @ rewards_gradients(case, reference, outside=False) + reference.kl
    assert distance(found.gradient, expected) < 1e-10


def test_staleness_counts_the_shares_of_guards() -> None:
    """The trained reward keeps all of its share; only what the guard adds has changed."""
    balance = Guarded(Fixed((1.0,)), Guards((math.nan, 0.0)))
    now = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    cached = balance(gram(torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)))
    cache = DirectionCache().update(cached, torch.ones(2), 0.0)
    found = measure_staleness(balance, gram(torch.cat([now, now]) / 2), cache, Ranks())
    assert found is not None
    assert found.noise == pytest.approx(0.0, abs=1e-20)
    assert found.change == pytest.approx((1 - 1 / 1.5) ** 2 + (0.5 / 1.5) ** 2)
