"""What amortised steps remember between refreshes."""

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from marble_cli.balance import DirectionCache, Solution, gram
from marble_cli.balance.base import Balance
from marble_cli.balance.constant import Fixed
from marble_cli.balance.guards import Guards, guard
from marble_cli.balance.marble import LeastNorm
from marble_cli.balance.upgrad import ProjectedSum

NONE = Solution(
    torch.zeros(3, dtype=torch.float64),
    torch.zeros(3, dtype=torch.float64),
    torch.zeros(3, dtype=torch.bool),
    0.0,
    "none",
    0,
    0.0,
    True,
)


def refresh(seed: int, silent: int | None = None) -> tuple[Solution, Tensor]:
    gradients = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    gradients *= torch.tensor([[0.1], [1.0], [10.0]])
    if silent is not None:
        gradients[silent] = 0.0
    return LeastNorm()(gram(gradients)), gradients.norm(dim=1)


def test_an_empty_cache_has_no_direction() -> None:
    assert DirectionCache().direction_weights() is None
    assert DirectionCache().update(NONE, torch.zeros(3), 0.7).direction_weights() is None


def test_the_first_refresh_is_taken_whole() -> None:
    solution, norms = refresh(0)
    weights = DirectionCache().update(solution, norms, 0.7).direction_weights()
    assert weights is not None
    torch.testing.assert_close(weights, solution.weights)


def test_later_ones_are_smoothed() -> None:
    (first, norms_1), (second, norms_2) = refresh(0), refresh(1)
    cache = DirectionCache().update(first, norms_1, 0.7).update(second, norms_2, 0.7)
    alpha, norms = 0.7 * first.alpha + 0.3 * second.alpha, 0.7 * norms_1 + 0.3 * norms_2
    assert cache.alpha is not None
    torch.testing.assert_close(cache.alpha, alpha)
    weights = cache.direction_weights()
    assert weights is not None
    torch.testing.assert_close(weights, alpha * norms.mean() / norms)


def test_a_refresh_without_gradients_changes_nothing() -> None:
    cache = DirectionCache().update(*refresh(0), 0.7)
    assert cache.update(NONE, torch.zeros(3), 0.7) is cache


def test_a_silent_reward_keeps_its_norm_and_at_most_an_equal_share() -> None:
    cache = DirectionCache().update(*refresh(0), 0.0)
    later = cache.update(*refresh(1, silent=1), 0.0)
    assert cache.alpha is not None
    assert cache.norms is not None
    assert later.alpha is not None
    assert later.norms is not None
    assert later.norms[1] == cache.norms[1]
    torch.testing.assert_close(later.alpha[1], cache.alpha[1].clamp(max=1 / 3))
    torch.testing.assert_close(later.alpha.sum(), torch.ones((), dtype=torch.float64))
    weights = later.direction_weights()
    assert weights is not None
    assert weights.isfinite().all()


def opposing(cosine: float) -> Tensor:
    """Return unit gradients [2, 2] of that cosine."""
    return torch.tensor([[1.0, 0.0], [cosine, (1 - cosine**2) ** 0.5]], dtype=torch.float64)


@pytest.mark.parametrize("lengths", [(1.0, 1.0), (1.0, 10.0), (10.0, 1.0)])
def test_protection_outlasts_refreshes_that_do_not_see_what_it_is_for(lengths: tuple[float, float]) -> None:
    """UPGrad's multipliers stay while the other reward is silent, and are found anew when it is back."""
    gradients = opposing(-0.8) * torch.tensor(lengths)[:, None]
    silent = gradients.clone()
    silent[1] = 0.0
    balance = ProjectedSum((1.0, 1.0))
    cache = DirectionCache().update(balance(gram(gradients)), gradients.norm(dim=1), 0.7)
    for _ in range(20):
        cache = cache.update(balance(gram(silent)), silent.norm(dim=1), 0.7)
    weights = cache.direction_weights()
    assert weights is not None
    assert (gradients @ (weights @ gradients) > -1e-9).all()
    aligned = opposing(0.5)
    cache = cache.update(balance(gram(aligned)), aligned.norm(dim=1), 0.0)
    assert cache.alpha is not None
    torch.testing.assert_close(cache.alpha, torch.tensor([0.5, 0.5], dtype=torch.float64))


@pytest.mark.parametrize("inner", [LeastNorm(), Fixed((1.0, 1.0))])
def test_a_guard_holds_while_the_reward_that_opposes_it_is_silent(inner: Balance) -> None:
    """Two trained rewards; the guard is against the second, and has nothing against the first."""
    gradients = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, -0.8, 0.6]], dtype=torch.float64)
    silent = gradients.clone()
    silent[1] = 0.0
    balance = guard(inner, Guards((torch.nan, torch.nan, 0.0)))
    cache = DirectionCache().update(balance(gram(gradients)), gradients.norm(dim=1), 0.7)
    for _ in range(20):
        cache = cache.update(balance(gram(silent)), silent.norm(dim=1), 0.7)
    weights = cache.direction_weights()
    assert weights is not None
    assert gradients[2] @ (weights @ gradients) > -1e-9
    alone = torch.eye(3, dtype=torch.float64)
    cache = cache.update(balance(gram(alone)), alone.norm(dim=1), 0.0)
    assert cache.alpha is not None
    assert cache.alpha[2] == 0.0, "nothing opposes the guard any more"


def test_rewards_that_appear_late_are_not_shut_out() -> None:
    """First only reward 0 has a gradient, then only the others: they take over all but its equal part."""
    gradients = torch.eye(3, dtype=torch.float64)
    first, second = gradients.clone(), gradients.clone()
    first[1:] = 0.0
    second[0] = 0.0
    cache = DirectionCache().update(LeastNorm()(gram(first)), first.norm(dim=1), 0.5)
    cache = cache.update(LeastNorm()(gram(second)), second.norm(dim=1), 0.5)
    assert cache.alpha is not None
    torch.testing.assert_close(cache.alpha, torch.tensor([2 / 3, 1 / 6, 1 / 6], dtype=torch.float64))
    torch.testing.assert_close(cache.norms, torch.ones(3, dtype=torch.float64))


def test_shares_of_raw_gradients_are_used_as_they_are() -> None:
    _, norms = refresh(0)
    cache = DirectionCache().update(Fixed((1.0, 1.0, 2.0))(torch.eye(3)), norms, 0.7)
    weights = cache.direction_weights()
    assert weights is not None
    assert weights.tolist() == [0.25, 0.25, 0.5]


def test_it_survives_json_bit_for_bit() -> None:
    cache = DirectionCache().update(*refresh(0), 0.7).update(*refresh(1), 0.7)
    for one in (replace(cache, interval=4, due=9), DirectionCache()):
        again = DirectionCache.from_state(json.loads(json.dumps(one.state_dict())))
        assert (again.unit, again.interval, again.due) == (one.unit, one.interval, one.due)
        for a, b in ((again.alpha, one.alpha), (again.norms, one.norms)):
            assert (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))


def test_the_cache_of_an_older_checkpoint_is_due_at_once() -> None:
    state = DirectionCache().update(*refresh(0), 0.7).state_dict()
    for key in ("interval", "due"):
        del state[key]
    assert (DirectionCache.from_state(state).interval, DirectionCache.from_state(state).due) == (1, 1)
