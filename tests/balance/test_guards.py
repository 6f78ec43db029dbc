"""Guards: against all active sets and another method, as properties, and where guards are opposed."""

import json
import math
from dataclasses import replace
from itertools import chain, combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from torch import Tensor

from marble_cli.balance import Balance, DirectionCache, Solution, Stateful, build, cone, cosines, gram
from marble_cli.balance.constant import Fixed, ScalarisedReward
from marble_cli.balance.guards import (
    BELOW_MARGIN,
    PUSHED_DOWN,
    Guarded,
    Guards,
    describe_guards,
    warn_violated,
)
from marble_cli.errors import BalanceError
from tests.balance.properties import assert_active_only, direction
from tests.balance.test_balances import config

NAN = math.nan
SEEDS = st.integers(0, 10_000)


def draw(seed: int, trained: int, guards: int, size: int = 12) -> tuple[Guarded, Tensor, Tensor]:
    """Draw gradients [K + J, size], guards last and against the trained ones, half of them with a margin.

    Returns the guarded balance of equal shares, the gradients and the margins [J].
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(trained + guards, size, generator=generator, dtype=torch.float64)
    rows *= 10.0 ** torch.randint(-3, 3, (len(rows), 1), generator=generator)
    rows[trained:] -= 0.5 * rows[trained:].norm(dim=1, keepdim=True) * rows[0] / rows[0].norm()
    margins = torch.rand(guards, generator=generator, dtype=torch.float64) * (torch.arange(guards) % 2) * 0.4
    balance = Guarded(Fixed((1.0,) * trained), Guards((*[NAN] * trained, *margins.tolist())))
    return balance, rows, margins


def split(rows: Tensor, guards: int) -> tuple[Tensor, Tensor]:
    """Return the direction of equal shares, and the guards' gradients at unit length."""
    units = rows[-guards:] / rows[-guards:].norm(dim=1, keepdim=True)
    return rows[:-guards].mean(dim=0), units


def every_active_set(d0: Tensor, units: Tensor, margins: Tensor) -> Tensor:
    """Try every set of guards that hold with equality, and keep the nearest direction that keeps all."""
    found, bound = [], margins * d0.norm()
    for chosen in chain.from_iterable(combinations(range(len(units)), n) for n in range(len(units) + 1)):
        held = units[list(chosen)]
        missing = bound[list(chosen)] - held @ d0
        d = d0 + held.T @ torch.linalg.lstsq(held @ held.T, missing[:, None], driver="gelsd").solution[:, 0]
        if (units @ d >= bound - 1e-9 * d0.norm()).all():
            found.append(d)
    return min(found, key=lambda d: float((d - d0).norm()))


def least_distance(d0: Tensor, units: Tensor, margins: Tensor) -> Tensor:
    """Solve by the least distance programming of Lawson and Hanson, on the vectors themselves."""
    missing = (margins * d0.norm() - units @ d0).numpy()
    matrix = np.vstack([units.T.numpy(), missing])
    target = np.append(np.zeros(len(d0)), 1.0)
    left = matrix @ nnls(matrix, target)[0] - target
    return d0 + torch.from_numpy(-left[:-1] / left[-1])


@pytest.mark.parametrize("solver", ["osqp", "active_set"])
def test_the_direction_is_that_of_every_active_set_and_of_another_method(solver: str) -> None:
    acted = 0
    for seed in range(24):
        trained, guards = 1 + seed % 4, 1 + seed % 4 if seed % 4 else 1 + seed % 7
        balance, rows, margins = draw(seed, trained, guards)
        solution = replace(balance, guards=replace(balance.guards, solver=solver))(gram(rows))
        d0, units = split(rows, guards)
        found, size = direction(solution, rows), d0.norm()
        assert (found - every_active_set(d0, units, margins)).norm() < 1e-8 * size
        assert (found - least_distance(d0, units, margins)).norm() < 1e-7 * size
        assert (units @ found >= (margins - 1e-9) * size).all()
        assert (solution.weights[trained:] >= 0.0).all()
        assert solution.weights[:trained].tolist() == [1 / trained] * trained
        assert_active_only(solution)
        if solution.weights[trained:].any():
            assert 0.0 <= solution.gap <= 1e-10
            acted += 1
    assert acted > 12


def priced(d: Tensor, d0: Tensor, units: Tensor, margins: Tensor) -> Tensor:
    """What the directions d [..., P] cost: half the squared distance to d0, and the prices of violations."""
    along = d @ units.T
    price = PUSHED_DOWN * (-along).clamp(min=0) + BELOW_MARGIN * (margins - along).clamp(min=0)
    return (d - d0).square().sum(-1) / 2 + price.sum(-1)


def test_what_no_short_direction_keeps_is_violated_at_the_least_price() -> None:
    """Two nearly opposite guards: only a direction of some 1000 times the length would keep both margins."""
    margins, violated = torch.tensor([0.3, 0.1], dtype=torch.float64), 0
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        d0, one, aside = torch.randn(3, 2, generator=generator, dtype=torch.float64)
        rows = torch.stack([d0 / d0.norm(), one, -one + 1e-4 * aside])
        solution = Guarded(Fixed((1.0,)), Guards((NAN, *margins.tolist())))(gram(rows))
        units = rows[1:] / rows[1:].norm(dim=1, keepdim=True)
        found = direction(solution, rows)
        assert solution.gap <= 1e-10
        assert (units @ found > -1e-3).all()  # the margins yield, not the guards
        near = found + 0.05 * torch.randn(500, 2, generator=generator, dtype=torch.float64) ** 3
        others = torch.cat([near, rows[:1], torch.zeros(1, 2, dtype=torch.float64)])
        least = priced(others, rows[0], units, margins).min()
        assert priced(found, rows[0], units, margins) <= least + 1e-9
        violated += bool((units @ found < margins - 1e-6).any())
    assert violated > 6


@pytest.mark.parametrize("along", [0.0, 0.5, -0.5])
def test_opposite_guards_lose_their_margins_and_are_told(along: float) -> None:
    rows = torch.tensor([[along, 1.0], [2.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    solution = Guarded(Fixed((1.0,)), Guards((NAN, 0.2, 0.2)))(gram(rows))
    found, size = direction(solution, rows), rows[0].norm().item()
    assert found.tolist() == pytest.approx([0.0, 1.0], abs=1e-9)
    metrics = describe_guards(["a", "b", "c"], gram(rows), solution)
    for name in ("b", "c"):
        assert metrics[f"balance/guard/{name}/violation"] == pytest.approx(0.2)
    assert metrics["balance/guard/b/cosine_before"] == pytest.approx(along / size)
    assert warn_violated(metrics) == (
        "no direction satisfies all guards; the closest violates b by 0.2, c by 0.2",
    )


@given(SEEDS, st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=15, deadline=None, database=None)
def test_a_guard_is_kept_whatever_the_scale_and_the_order(seed: int, trained: int, guards: int) -> None:
    balance, rows, margins = draw(seed, trained, guards)
    solution = balance(gram(rows))
    d0, units = split(rows, guards)
    found, size = direction(solution, rows), float(d0.norm())
    assert (units @ found >= (margins - 1e-9) * size).all()
    if not solution.weights[trained:].any():
        assert torch.equal(found, direction(Fixed((1.0,) * trained)(gram(rows[:trained])), rows[:trained]))
    scale = torch.ones(len(rows), 1, dtype=torch.float64)
    scale[trained:] = 10.0 ** (torch.arange(guards)[:, None] - 2.0)
    scaled = direction(balance(gram(7.0 * scale * rows)), 7.0 * scale * rows)
    assert (scaled - 7.0 * found).norm() < 1e-6 * size
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    turned = Guarded(balance.balance, Guards(tuple(balance.guards.margins[k] for k in order)))
    assert (direction(turned(gram(rows[order])), rows[order]) - found).norm() < 1e-6 * size
    nudged = rows * (1.0 + 1e-7 * torch.sin(torch.arange(rows.numel()).view_as(rows)))
    assert (direction(balance(gram(nudged)), nudged) - found).norm() < 1e-3 * size


def test_a_guard_without_a_finite_gradient_leaves_and_nothing_stays_nothing() -> None:
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 1.0]], dtype=torch.float64)
    balance = Guarded(Fixed((1.0, 1.0)), Guards((NAN, NAN, 0.0)))
    assert balance(gram(rows)).weights[2] > 0.0
    for value in (0.0, NAN, math.inf):
        spoilt = rows.clone()
        spoilt[2] = value
        solution = balance(gram(spoilt))
        assert_active_only(solution)
        assert (solution.active.tolist(), solution.weights.tolist()) == ([True, True, False], [0.5, 0.5, 0.0])
        assert describe_guards(["a", "b", "c"], gram(spoilt), solution) == {}
    rows[1] = -rows[0]
    lifted = replace(balance, guards=Guards((NAN, NAN, 0.3)))
    assert lifted(gram(rows)).weights.tolist() == [0.5, 0.5, 0.0]
    rows[:2] = 0.0
    assert lifted(gram(rows)).weights.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "name", ["marble", "mgda", "upgrad", "equal", "fixed", "torchjd:DualProj", "torchjd:PCD"]
)
def test_every_balance_takes_guards(name: str) -> None:
    """The cache of its first refresh has the same weights, and the trained rewards keep theirs."""
    if name.startswith("torchjd:"):
        pytest.importorskip("torchjd")
    names, weights = ["a", "b", "c", "d"], [1.0, 2.0, 3.0, 1.0]
    guarded = build(config(name), names, weights, [NAN, 0.0, NAN, 0.1])
    plain = build(config(name), ["a", "c"], [1.0, 3.0])
    assert isinstance(guarded, Balance)
    assert isinstance(plain, Balance)
    assert isinstance(guarded, Stateful) == isinstance(plain, Stateful)
    if isinstance(guarded, Stateful):
        guarded.load_state_dict(guarded.state_dict())
    _, rows, _ = draw(3, 4, 0)
    rows[1] = -rows[0] * rows[1].norm() / rows[0].norm() + rows[1]
    solution, alone = guarded(gram(rows)), plain(gram(rows[[0, 2]]))
    torch.testing.assert_close(solution.weights[[0, 2]], alone.weights)
    torch.testing.assert_close(solution.alpha[[0, 2]], alone.alpha)
    assert solution.weights[1] > 0.0
    assert cosines(gram(rows), solution.weights)[1] > -1e-9
    cached = DirectionCache().update(solution, rows.norm(dim=1), 0.7).direction_weights()
    assert cached is not None
    torch.testing.assert_close(cached, solution.weights, rtol=1e-12, atol=0.0)


def test_a_mixture_is_of_the_trained_rewards() -> None:
    mixture = build(config("weighted_sum"), ["a", "b", "c"], [1.0, 2.0, 3.0], [NAN, 0.0, NAN])
    assert isinstance(mixture, ScalarisedReward)
    assert mixture.weights == (1.0, 3.0)
    guarded = mixture.guarded()
    assert guarded is not None
    rows = torch.tensor([[9.0, 0.0], [-1.0, 1.0], [0.0, 9.0], [1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(guarded(gram(rows)).weights, torch.tensor([0.0, 0.5, 0.0, 1.0]).double())
    plain = build(config("weighted_sum"), ["a"], [1.0], [NAN])
    assert isinstance(plain, ScalarisedReward)
    assert plain.guarded() is None


def test_the_cache_smooths_guards_beside_the_shares() -> None:
    def refresh(seed: int, silent: int | None = None) -> tuple[Solution, Tensor]:
        _, rows, _ = draw(seed, 2, 1)
        if silent is not None:
            rows[silent] = 0.0
        balance = build(config(), ["a", "b", "c"], [1.0] * 3, [NAN, NAN, 0.0])
        assert isinstance(balance, Balance)
        return balance(gram(rows)), rows.norm(dim=1)

    (first, norms), (second, later) = refresh(0), refresh(1)
    cache = DirectionCache().update(first, norms, 0.7)
    smoothed = cache.update(second, later, 0.7)
    assert cache.alpha is not None
    assert smoothed.alpha is not None
    torch.testing.assert_close(smoothed.alpha, 0.7 * first.alpha + 0.3 * second.alpha)
    mean = 0.7 * norms + 0.3 * later
    weights = smoothed.direction_weights()
    torch.testing.assert_close(weights, smoothed.alpha * mean[:2].mean() / mean)
    without = cache.update(*refresh(1, silent=2), 0.0)
    assert without.alpha is not None
    assert without.alpha[2] == cache.alpha[2]
    assert without.alpha[:2].sum().item() == pytest.approx(1.0)
    held = cache.update(*refresh(1, silent=0), 0.0)
    assert held.alpha is not None
    assert cache.alpha[2] > refresh(1, silent=0)[0].alpha[2], "the silent one may be what opposes the guard"
    assert held.alpha[2] == cache.alpha[2]
    again = DirectionCache.from_state(json.loads(json.dumps(smoothed.state_dict())))
    assert torch.equal(again.direction_weights(), weights)  # type: ignore[arg-type]


def test_a_solver_that_fails_is_replaced_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    balance, rows, _ = draw(3, 2, 3)
    expected = balance(gram(rows))
    monkeypatch.setattr(cone, "_qpsolvers", lambda unit, along, most, solver: np.full(len(along), np.nan))
    found = balance(gram(rows))
    assert (found.solver, found.fallbacks) == ("active_set", 1)
    torch.testing.assert_close(found.weights, expected.weights)
    matrix = torch.tensor([[1.0, -0.5, 0.0], [-0.5, 1.0, -3.0], [0.0, -3.0, 1.0]])  # of no vectors
    with pytest.raises(BalanceError, match=r"balance\.solver: osqp.*active_set.*residual of 1e-10"):
        Guarded(Fixed((1.0,)), Guards((NAN, 0.0, 0.0)))(matrix)
