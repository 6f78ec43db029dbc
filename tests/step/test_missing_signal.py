"""Steps in which rewards have no image, no finite gradient or no balance."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from marble_cli.balance.cache import DirectionCache
from marble_cli.balance.gram import gram
from marble_cli.balance.marble import LeastNorm
from marble_cli.errors import BalanceError
from tests.step.directions import (
    CACHE,
    INSIDE,
    DescentMaker,
    direct,
    distance,
    only_lora,
    rewards_gradients,
    silent,
)


@pytest.mark.parametrize("shared_term", ["inside", "outside"])
def test_a_reward_without_images_is_left_out_and_named(
    descent: DescentMaker, case: Any, shared_term: str
) -> None:
    direction = direct(descent("balance.mode=full", f"balance.shared_term={shared_term}"), case)
    assert direction.warnings[0].startswith("left out of the balance: nowhere (zero gradient);")
    assert not [
        key for key in direction.metrics if key.startswith(("balance/alpha/now", "balance/cosine/now"))
    ]
    assert direction.metrics["balance/grad_norm/nowhere"] == 0.0


@pytest.mark.parametrize(
    ("balance", "shared_term"), [("marble", "inside"), ("marble", "outside"), ("weighted_sum", "inside")]
)
def test_a_reward_without_signal_is_left_out_as_one_without_images_is(
    descent: DescentMaker, case: Any, balance: str, shared_term: str
) -> None:
    """Inside its loss only the shared term would be left: rounding noise at a first step."""
    words = [f"balance={balance}", "balance.mode=full", f"balance.shared_term={shared_term}"]
    words += ["rewards.third.role=guard"] if balance == "weighted_sum" else []
    flat, missing = (
        replace(case.signal, **{key: getattr(case.signal, key).clone()})
        for key in ("optimality", "applicable")
    )
    flat.optimality[2] = 0.5
    missing.applicable[2] = False
    found, expected = (direct(descent(*words), case, DirectionCache(), signal) for signal in (flat, missing))
    assert distance(found.gradient, expected.gradient) < 1e-10
    assert found.warnings[0].startswith("left out of the balance: third (zero gradient)")
    assert "balance/guard/third/acted" not in found.metrics


def test_mixing_advantages_without_any_signal_leaves_the_kl_term(
    descent: DescentMaker, case: Any, reference: Any
) -> None:
    made = descent("balance.amortize=advantage", "balance.refresh_fraction=0.5", "balance.mode=full")
    direction = direct(made, case, DirectionCache(), silent(case.signal))
    assert distance(direction.gradient, reference.kl) < 1e-10
    assert direction.cache.alpha is None


@pytest.mark.parametrize("mode", ["balance.mode=full", "balance.mode=amortized", "balance=output_space"])
@pytest.mark.parametrize("shared_term", ["inside", "outside"])
def test_without_any_score_only_the_kl_term_moves_the_weights(
    descent: DescentMaker, case: Any, reference: Any, mode: str, shared_term: str
) -> None:
    direction = direct(descent(mode, f"balance.shared_term={shared_term}"), case, CACHE, silent(case.signal))
    assert distance(direction.gradient, reference.kl) < 1e-10
    assert direction.cache is CACHE
    assert direction.metrics["loss/policy"] == 0.0


def test_a_refresh_of_rewards_without_weight_caches_nothing(descent: DescentMaker, case: Any) -> None:
    """The third reward alone has signal, and weight 0: cached zeros would leave amortised steps nothing."""
    weights = "balance.weights={colorfulness: 1, compressibility: 1, third: 0, fourth: 1, nowhere: 1}"
    signal = replace(case.signal, optimality=case.signal.optimality.clone())
    signal.optimality[[0, 1, 3]] = 0.5
    for cache in (DirectionCache(), CACHE):
        made = descent("balance=fixed", weights, "balance.mode=full", INSIDE)
        direction = direct(made, case, cache, signal)
        assert direction.metrics["balance/weight/third"] == 0.0
        assert direction.cache is cache


@only_lora
def test_a_refresh_of_a_sum_without_signal_leaves_the_guards_as_cached(
    descent: DescentMaker, case: Any
) -> None:
    """Of the trained rewards the second alone has signal, and weight 0: there is nothing to guard."""
    words = ("rewards.compressibility.weight=0", "rewards.third.role=guard", "rewards.third.margin=0.99")
    made = descent("balance=advantage_sum", "balance.mode=full", *words)
    guarding = direct(made, case, DirectionCache()).cache
    assert guarding.alpha is not None
    assert guarding.alpha[2] > 0.0
    silenced = case.signal.applicable.clone()
    silenced[[0, 3]] = False
    for cache in (DirectionCache(), guarding):
        direction = direct(made, case, cache, replace(case.signal, applicable=silenced))
        assert direction.metrics["balance/weight/third"] == 0.0
        assert direction.cache is cache


def test_a_gradient_that_is_not_finite_leaves_the_balance(
    descent: DescentMaker, case: Any, reference: Any
) -> None:
    """An infinite optimality stands for a loss that overflowed."""
    spoilt = case.signal.optimality.clone()
    spoilt[1] = torch.inf
    direction = direct(
        descent("balance.mode=full", INSIDE), case, DirectionCache(), replace(case.signal, optimality=spoilt)
    )
    rows = rewards_gradients(case, reference, outside=False)[[0, 2, 3]]
    expected = LeastNorm()(gram(rows)).weights @ rows
    assert distance(direction.gradient, expected + reference.kl) < 1e-9
    left_out = "compressibility (gradient not finite), nowhere (zero gradient)"
    assert direction.warnings[0].startswith(f"left out of the balance: {left_out};")
    assert "balance/alpha/compressibility" not in direction.metrics
    assert math.isfinite(direction.metrics["loss/policy"])


def test_a_balance_that_fails_leaves_the_cache_and_takes_it(
    descent: DescentMaker, case: Any, reference: Any
) -> None:
    def fail(matrix: Tensor) -> Any:
        raise BalanceError("no solver reached the gap")

    made = descent("balance.mode=full", INSIDE, balance=fail)
    direction = direct(made, case)
    weights = CACHE.direction_weights()
    assert weights is not None
    expected = weights @ rewards_gradients(case, reference, outside=False)
    assert distance(direction.gradient, expected + reference.kl) < 1e-10
    assert direction.cache is CACHE
    assert direction.metrics["balance/failed"] == 1
    assert "balance/gap" not in direction.metrics
    assert "no solver reached the gap" in direction.warnings[0]
    with pytest.raises(BalanceError, match="no solver"):
        direct(made, case, DirectionCache())
