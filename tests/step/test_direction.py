"""The descent: refreshes, amortised steps and mixtures against the definition's own gradients, in float64."""

from itertools import combinations
from typing import Any

import pytest
import torch

from marble_cli.balance.cache import DirectionCache
from marble_cli.balance.constant import Scalarisation, ScalarisedReward
from marble_cli.balance.gram import gram
from marble_cli.balance.marble import LeastNorm
from marble_cli.config.enums import Reduce, SharedTerm
from marble_cli.objective.advantages import advantage_sum, advantages, optimality, weighted_sum
from marble_cli.objective.coefficients import reward_coefficients
from marble_cli.step.batches import chunks
from marble_cli.step.step_gram import velocity_gram
from tests.step.directions import (
    CACHE,
    INSIDE,
    NAMES,
    DescentMaker,
    cosine,
    direct,
    distance,
    rewards_gradients,
)


@pytest.mark.parametrize("shared_term", ["inside", "outside"])
def test_a_refresh_pushes_no_reward_down(
    descent: DescentMaker, case: Any, reference: Any, shared_term: str
) -> None:
    outside = shared_term == "outside"
    direction = direct(descent("balance.mode=full", f"balance.shared_term={shared_term}"), case)
    rows = rewards_gradients(case, reference, outside=outside)
    balanced = direction.gradient - reference.kl
    if outside:
        balanced = balanced - reference.shared(case.signal.applicable.any(0))
    units = rows[:4] / rows[:4].norm(dim=1, keepdim=True)
    cosines = [cosine(balanced, row) for row in rows[:4]]
    assert min(cosines) >= -1e-9
    metrics = direction.metrics
    assert metrics["balance/refresh"] == 1
    assert 0 <= metrics["balance/gap"] <= 1e-10
    alpha = torch.tensor([metrics[f"balance/alpha/{name}"] for name in NAMES[:4]], dtype=torch.float64)
    assert alpha.sum().item() == pytest.approx(1.0)
    assert distance(balanced, rows.norm(dim=1)[:4].mean() * alpha @ units) < 1e-9
    shortest = LeastNorm()(gram(units)).alpha
    torch.testing.assert_close(alpha, shortest, rtol=0, atol=1e-7)
    for k, name in enumerate(NAMES[:4]):
        assert metrics[f"balance/cosine/{name}"] == pytest.approx(cosines[k], abs=1e-9)
        assert metrics[f"balance/grad_norm/{name}"] == pytest.approx(rows[k].norm().item())
    assert metrics["loss/kl"] > 0


def test_a_weighted_sum_would_push_one_down(case: Any, reference: Any) -> None:
    """The case is not one where any direction would do."""
    rows = rewards_gradients(case, reference, outside=True)[:4]
    assert min(cosine(rows.sum(0), row) for row in rows) < 0


@pytest.mark.parametrize("shared_term", ["inside", "outside"])
def test_an_amortised_step_takes_the_cached_weights(
    descent: DescentMaker, case: Any, reference: Any, shared_term: str
) -> None:
    direction = direct(descent(f"balance.shared_term={shared_term}"), case)
    weights = CACHE.direction_weights()
    assert weights is not None
    rows = rewards_gradients(case, reference, outside=shared_term == "outside")
    expected = weights @ rows + reference.kl
    if shared_term == "outside":
        expected = expected + reference.shared(case.signal.applicable.any(0))
    assert distance(direction.gradient, expected) < 1e-10
    assert direction.cache is CACHE
    assert direction.metrics["balance/refresh"] == 0
    assert direction.metrics["balance/alpha/third"] == pytest.approx(0.2)
    assert direction.metrics["balance/weight/third"] == pytest.approx(weights[2].item())


@pytest.mark.parametrize("shared_term", ["inside", "outside"])
def test_after_a_refresh_the_amortised_step_goes_the_same_way(
    descent: DescentMaker, case: Any, shared_term: str
) -> None:
    full = direct(descent("balance.mode=full", f"balance.shared_term={shared_term}"), case, DirectionCache())
    amortised = direct(descent(f"balance.shared_term={shared_term}"), case, full.cache)
    assert distance(amortised.gradient, full.gradient) < 1e-9
    assert amortised.metrics["loss/policy"] == pytest.approx(full.metrics["loss/policy"], rel=1e-9)


def test_the_published_amortisation_goes_elsewhere(descent: DescentMaker, case: Any, reference: Any) -> None:
    exact, published = (
        direct(descent(f"balance.amortize={how}"), case) for how in ("direction", "advantage")
    )
    mixed = (CACHE.alpha[:, None] * case.signal.advantage * case.signal.applicable).sum(0)  # type: ignore[index]
    expected = reference.gradient(optimality(mixed, case.objective.clip), case.signal.applicable.any(0))
    assert distance(published.gradient, expected + reference.kl) < 1e-10
    assert cosine(exact.gradient - reference.kl, published.gradient - reference.kl) < 0.99


@pytest.mark.parametrize("refresh", [True, False])
@pytest.mark.parametrize(
    ("name", "reduce"), [("weighted_sum", "sum"), ("weighted_sum", "mean"), ("advantage_sum", "sum")]
)
def test_mixtures_are_the_gradient_of_one_loss(
    descent: DescentMaker, case: Any, reference: Any, name: str, reduce: str, refresh: bool
) -> None:
    weights = torch.tensor([1.0, 3.0, 0.5, 1.0, 1.0])
    overrides = [f"rewards.{n}.weight={w}" for n, w in zip(NAMES, weights.tolist(), strict=True)]
    mode = "full" if refresh else "amortized"
    overrides += [f"balance={name}", f"balance.mode={mode}", f"balance.reduce={reduce}"]
    direction = direct(descent(*overrides), case)
    signal = case.signal
    if name == "weighted_sum":
        mixed, scored = weighted_sum(
            signal.rewards, signal.applicable, weights, signal.groups, reduce=Reduce(reduce)
        )
        advantage = advantages(mixed, scored, signal.groups)
    else:
        advantage, scored = advantage_sum(signal.advantage, signal.applicable, weights)
    r = optimality(advantage[0], case.objective.clip)
    expected = reference.gradient(r, scored[0])
    assert distance(direction.gradient, expected + reference.kl) < 1e-10
    assert direction.metrics["loss/policy"] == pytest.approx(reference.loss(r, scored[0]).item(), rel=1e-9)
    rows = rewards_gradients(case, reference, outside=False)
    if refresh:
        for k, reward in enumerate(NAMES[:4]):
            assert direction.metrics[f"balance/cosine/{reward}"] == pytest.approx(cosine(expected, rows[k]))


def test_an_unknown_scalarisation_is_refused() -> None:
    with pytest.raises(ValueError, match="weighted_mean"):
        ScalarisedReward(Scalarisation("weighted_mean"), (1.0,) * 5)


@pytest.mark.parametrize(("name", "shares"), [("equal", None), ("fixed", [0.5, 0.2, 0.2, 0.1])])
def test_constant_shares_add_the_gradients_up(
    descent: DescentMaker, case: Any, reference: Any, name: str, shares: list[float] | None
) -> None:
    overrides = ["balance.weights={colorfulness: 5, compressibility: 2, third: 2, fourth: 1, nowhere: 7}"]
    overrides = [*(overrides if shares else []), INSIDE]
    direction = direct(descent(f"balance={name}", "balance.mode=full", *overrides), case)
    rows = rewards_gradients(case, reference, outside=False)[:4]
    expected = torch.tensor(shares or [0.25] * 4, dtype=torch.float64) @ rows
    assert distance(direction.gradient, expected + reference.kl) < 1e-10


@pytest.mark.parametrize("shared_term", ["inside", "outside"])
def test_output_space_balances_velocities_at_every_step(
    descent: DescentMaker, double_policy: Any, case: Any, reference: Any, shared_term: str
) -> None:
    direction = direct(descent("balance=output_space", f"balance.shared_term={shared_term}"), case)
    signal = case.signal
    rewards = reward_coefficients(
        signal.optimality, signal.applicable, shared_term=SharedTerm(shared_term)
    ).rewards
    weights = LeastNorm()(velocity_gram(case.step(double_policy), chunks(case.data, 5), rewards)).weights
    expected = weights @ rewards_gradients(case, reference, outside=shared_term == "outside") + reference.kl
    if shared_term == "outside":
        expected = expected + reference.shared(signal.applicable.any(0))
    assert distance(direction.gradient, expected) < 1e-10
    assert direction.metrics["balance/refresh"] == 1
    assert direction.metrics["balance/gap"] <= 1e-10
    assert direction.cache is CACHE


def test_a_refresh_tells_how_stale_the_cache_was(descent: DescentMaker, case: Any, reference: Any) -> None:
    metrics = direct(descent("balance.mode=full", INSIDE), case).metrics
    rows = rewards_gradients(case, reference, outside=False)
    cached = CACHE.direction_weights()
    assert cached is not None
    fresh = torch.tensor([metrics.get(f"balance/weight/{name}", 0.0) for name in NAMES])
    assert metrics["balance/staleness_cosine"] == pytest.approx(cosine(cached @ rows, fresh.double() @ rows))
    assert (
        "balance/staleness_cosine" not in direct(descent("balance.mode=full"), case, DirectionCache()).metrics
    )
    for name, row in zip(NAMES[:4], rows, strict=False):
        assert metrics[f"balance/cached_cosine/{name}"] == pytest.approx(cosine(cached @ rows, row))
    for (a, one), (b, other) in combinations(enumerate(NAMES[:4]), 2):
        assert metrics[f"balance/pairwise_cosine/{one}/{other}"] == pytest.approx(cosine(rows[a], rows[b]))
    pairs = [cosine(rows[a], rows[b]) for a, b in combinations(range(4), 2)]
    assert metrics["balance/conflict_share"] == pytest.approx(sum(c < 0 for c in pairs) / 6)


def test_output_space_looks_at_the_gradients_at_refresh_steps_only(descent: DescentMaker, case: Any) -> None:
    blind = direct(descent("balance=output_space"), case)
    seeing = direct(descent("balance=output_space", "balance.refresh_every=3"), case)
    assert distance(seeing.gradient, blind.gradient) < 1e-10
    assert not [key for key in blind.metrics if "cosine" in key]
    assert [key for key in seeing.metrics if key.startswith("balance/cosine/")]
    assert seeing.metrics["loss/policy"] == pytest.approx(blind.metrics["loss/policy"])
