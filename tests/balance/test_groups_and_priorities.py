"""Rewards in groups and with priorities: the guarantees of the QP hold for groups."""

from itertools import combinations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from marble_cli.balance import DirectionCache, Solution, cosines, gram
from marble_cli.balance.groups import RewardGroup
from marble_cli.balance.marble import LeastNorm

SEEDS = st.integers(0, 2**31)


def gradients(seed: int, rewards: int, size: int = 30) -> Tensor:
    """Return [K, P] float64 gradients with positive cosines and very different norms."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(rewards, size, generator=generator, dtype=torch.float64)
    rows += torch.randn(1, size, generator=generator, dtype=torch.float64)
    return rows * 10.0 ** torch.randn(rewards, 1, generator=generator, dtype=torch.float64)


def partition(seed: int, rewards: int) -> list[tuple[int, ...]]:
    labels = np.random.default_rng(seed).integers(0, rewards, rewards)
    return [tuple(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)]


def priorities(seed: int, count: int) -> list[float]:
    return [float(p) for p in 10.0 ** np.random.default_rng(seed).uniform(-0.7, 0.7, count)]


def group_vectors(rows: Tensor, parts: list[tuple[int, ...]], unit: bool) -> Tensor:
    """Return [E, P], the vector of every group."""
    own = rows / rows.norm(dim=1, keepdim=True) if unit else rows
    means = torch.stack([own[list(part)].mean(0) for part in parts])
    return means / means.norm(dim=1, keepdim=True) if unit else means


def single_groups(*priorities: float) -> tuple[RewardGroup, ...]:
    """Make one group per reward, with these priorities."""
    return tuple(RewardGroup((k,), priority) for k, priority in enumerate(priorities))


def direction(solution: Solution, rows: Tensor) -> Tensor:
    return solution.weights @ torch.where(solution.active[:, None], rows, 0.0)


def nearest_of_all_faces(points: np.ndarray) -> np.ndarray:
    """The hull's nearest point to the origin, by trying the affine hull of every subset."""
    best = points[np.linalg.norm(points, axis=1).argmin()]
    for count in range(2, len(points) + 1):
        for face in combinations(points, count):
            edges = np.stack(face[1:]) - face[0]
            z = np.linalg.lstsq(edges.T, -face[0], rcond=None)[0]
            foot = face[0] + z @ edges
            if z.min() >= 0.0 and z.sum() <= 1.0 and np.linalg.norm(foot) < np.linalg.norm(best):
                best = foot
    return best


@given(seed=SEEDS, rewards=st.integers(1, 6), unit=st.booleans(), floor=st.sampled_from([0.0, 0.1]))
@settings(max_examples=100, deadline=None)
def test_the_direction_is_the_nearest_point_of_the_groups(
    seed: int, rewards: int, unit: bool, floor: float
) -> None:
    """Against a search of all faces, on the vectors themselves instead of their Gram matrix."""
    rows, parts = gradients(seed, rewards), partition(seed, rewards)
    pi = priorities(seed, len(parts))
    solution = LeastNorm(unit, floor, groups=tuple(map(RewardGroup, parts, pi)))(gram(rows))
    own = group_vectors(rows, parts, unit).numpy()
    points = (floor * own.sum(0) + (1.0 - len(parts) * floor) * own) / np.array(pi)[:, None]
    expected, found = nearest_of_all_faces(points), direction(solution, rows).numpy()
    np.testing.assert_allclose(
        found / np.linalg.norm(found), expected / np.linalg.norm(expected), rtol=0.0, atol=1e-9
    )
    assert solution.alpha.sum().item() == pytest.approx(1.0, abs=1e-12)
    assert solution.alpha.min() >= 0.0


@given(seed=SEEDS, rewards=st.integers(1, 12), unit=st.booleans())
@settings(max_examples=100, deadline=None)
def test_every_group_goes_up_in_proportion_to_its_priority(seed: int, rewards: int, unit: bool) -> None:
    rows, parts = gradients(seed, rewards), partition(seed, rewards)
    pi = priorities(seed, len(parts))
    solution = LeastNorm(unit, groups=tuple(map(RewardGroup, parts, pi)))(gram(rows))
    d = direction(solution, rows)
    rate = group_vectors(rows, parts, unit) @ (d / d.norm()) / torch.tensor(pi, dtype=torch.float64)
    assert rate.min() > 0.0
    carries = torch.stack([solution.alpha[list(part)].sum() > 1e-9 for part in parts])
    torch.testing.assert_close(rate[carries], rate.min().expand(int(carries.sum())), rtol=1e-7, atol=0.0)


@given(seed=SEEDS, rewards=st.integers(1, 12), floor=st.sampled_from([0.02, 1.0 / 12]))
@settings(max_examples=60, deadline=None)
def test_the_floor_holds_on_the_final_shares_of_groups(seed: int, rewards: int, floor: float) -> None:
    rows, parts = gradients(seed, rewards), partition(seed, rewards)
    single = LeastNorm(True, floor, groups=single_groups(*priorities(seed, rewards)))
    assert single(gram(rows)).alpha.min() >= floor - 1e-12
    solution = LeastNorm(True, floor, groups=tuple(map(RewardGroup, parts)))(gram(rows))
    own = rows / rows.norm(dim=1, keepdim=True)
    length = torch.stack([own[list(part)].mean(0).norm() for part in parts])
    share = length * torch.stack([solution.alpha[list(part)].sum() for part in parts])
    assert (share / share.sum()).min() >= floor - 1e-12


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_groups_of_one_and_equal_priorities_change_nothing(unit: bool, floor: float) -> None:
    for seed in range(20):
        matrix = gram(gradients(seed, 7))
        plain = LeastNorm(unit, floor)(matrix)
        for priority in (1.0, 0.5, 8.0):
            alike = LeastNorm(unit, floor, groups=single_groups(*[priority] * 7))(matrix)
            assert torch.equal(alike.alpha, plain.alpha)
            assert torch.equal(alike.weights, plain.weights)


def test_orthogonal_gradients_share_by_priority() -> None:
    """z_k grows as pi_k squared and the share as z_k / pi_k; each goes up at its priority's rate."""
    rows = torch.diag(torch.tensor([3.0, 1e-3, 50.0], dtype=torch.float64))
    matrix = gram(rows)
    solution = LeastNorm(groups=single_groups(1.0, 2.0, 5.0))(matrix)
    torch.testing.assert_close(solution.alpha, torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64) / 8.0)
    torch.testing.assert_close(
        cosines(matrix, solution.weights), torch.tensor([1.0, 2.0, 5.0]).double() / 30**0.5
    )


@pytest.mark.parametrize("weight", [0.5, 2.0, 5.0])
def test_published_reward_weights_act_the_other_way_round(weight: float) -> None:
    """They lengthen unit gradients before the QP: the reward rises at 1 / weight of the others' rate."""
    draw = torch.Generator().manual_seed(4)
    rows = torch.nn.functional.normalize(torch.randn(3, 300, generator=draw, dtype=torch.float64))
    longer = rows * torch.tensor([weight, 1.0, 1.0], dtype=torch.float64)[:, None]
    published = LeastNorm(unit=False)(gram(longer)).weights @ longer
    ours = LeastNorm(groups=single_groups(1 / weight, 1.0, 1.0))(gram(rows)).weights @ rows
    torch.testing.assert_close(published / published.norm(), ours / ours.norm(), rtol=0, atol=1e-7)
    meant = LeastNorm(groups=single_groups(weight, 1.0, 1.0))(gram(rows)).weights @ rows
    rates = rows @ published, rows @ meant
    torch.testing.assert_close(rates[0][0] / rates[0][1], torch.tensor(1 / weight).double())
    torch.testing.assert_close(rates[1][0] / rates[1][1], torch.tensor(weight).double())


def test_twins_in_a_group_count_once() -> None:
    rows = gradients(3, 4)
    doubled = torch.cat([rows, 7.0 * rows[:1]])
    plain = LeastNorm()(gram(rows))
    groups = tuple(map(RewardGroup, [(0, 4), (1,), (2,), (3,)]))
    grouped = LeastNorm(groups=groups)(gram(doubled))
    torch.testing.assert_close(grouped.alpha[[0, 4]], plain.alpha[[0, 0]] / 2.0)
    torch.testing.assert_close(grouped.alpha[1:4], plain.alpha[1:])


@pytest.mark.parametrize("unit", [True, False])
def test_only_active_members_enter_their_group(unit: bool) -> None:
    rows = gradients(4, 5)
    spoilt = rows.clone()
    spoilt[1] = torch.nan
    groups = (RewardGroup((0, 1, 2), 2.0), RewardGroup((3,)), RewardGroup((4,)))
    solution = LeastNorm(unit, groups=groups)(gram(spoilt))
    without = (RewardGroup((0, 1), 2.0), RewardGroup((2,)), RewardGroup((3,)))
    others = LeastNorm(unit, groups=without)(gram(rows[[0, 2, 3, 4]]))
    assert solution.active.tolist() == [True, False, True, True, True]
    torch.testing.assert_close(solution.weights[[0, 2, 3, 4]], others.weights)
    spoilt[[0, 2]] = 0.0
    left = LeastNorm(unit, floor=0.2, groups=groups)(gram(spoilt))
    assert left.active.tolist() == [False, False, False, True, True]
    torch.testing.assert_close(left.weights[3:], LeastNorm(unit, floor=0.2)(gram(rows[3:])).weights)


@pytest.mark.parametrize("unit", [True, False])
def test_a_group_whose_mean_vanishes_is_left_out(unit: bool) -> None:
    rows = gradients(5, 4)
    rows[1] = -rows[0]
    solution = LeastNorm(unit, groups=(RewardGroup((0, 1)), RewardGroup((2,)), RewardGroup((3,))))(gram(rows))
    assert solution.active.tolist() == [False, False, True, True]
    torch.testing.assert_close(solution.weights[2:], LeastNorm(unit)(gram(rows[2:])).weights)
    none = LeastNorm(unit, groups=(RewardGroup((0, 1)),))(gram(rows[:2]))
    assert not none.active.any()
    assert none.weights.tolist() == [0.0, 0.0]
    assert none.solver == "none"


@given(seed=SEEDS, close=st.integers(1, 16), unit=st.booleans(), size=st.sampled_from([2, 3, 30]))
@settings(max_examples=100, deadline=None)
def test_members_that_nearly_cancel_do_no_harm(seed: int, close: int, unit: bool, size: int) -> None:
    """Only the direction of their mean is then uncertain, by rounding."""
    rows = gradients(seed, 6, size)
    rows[1] = -rows[0] + 10.0**-close * rows[0].norm() * rows[1] / rows[1].norm()
    parts = [(0, 1), (2,), (3, 4), (5,)]
    solution = LeastNorm(unit, groups=tuple(map(RewardGroup, parts, priorities(seed, 4))))(gram(rows))
    assert solution.gap <= 1e-13
    along = group_vectors(rows, parts[1:], unit) @ direction(solution, rows)
    scale = group_vectors(rows, parts[1:], unit).norm(dim=1) * (solution.weights @ rows.norm(dim=1))
    assert (along / scale).min() > -1e-7


def test_the_cache_repeats_a_refresh_with_groups() -> None:
    rows = gradients(6, 5)
    solution = LeastNorm(groups=(RewardGroup((0, 1), 3.0), RewardGroup((2, 3)), RewardGroup((4,))))(
        gram(rows)
    )
    weights = DirectionCache().update(solution, rows.norm(dim=1), 0.7).direction_weights()
    assert weights is not None
    torch.testing.assert_close(weights, solution.weights)


def test_norm_priority_leaves_orthogonal_gradients_a_plain_sum() -> None:
    rows = torch.diag(torch.tensor([3.0, 1e-3, 50.0], dtype=torch.float64))
    weights = LeastNorm(norm_priority=1.0)(gram(rows)).weights
    torch.testing.assert_close(weights / weights[0], torch.ones(3, dtype=torch.float64))
    half = LeastNorm(norm_priority=0.5)(gram(rows)).alpha
    torch.testing.assert_close(half / half[0], (rows.diagonal() / 3.0).sqrt())


@given(seed=SEEDS, power=st.floats(0.0, 2.0), unit=st.booleans())
@settings(max_examples=50, deadline=None)
def test_norm_priority_is_a_priority(seed: int, power: float, unit: bool) -> None:
    rows = gradients(seed, 5)
    norms = rows.norm(dim=1)
    one = LeastNorm(unit, groups=single_groups(*(norms**power).tolist()))(gram(rows))
    other = LeastNorm(unit, norm_priority=power)(gram(rows))
    torch.testing.assert_close(one.alpha, other.alpha, rtol=1e-6, atol=1e-9)
    assert cosines(gram(rows), other.weights).min() > -1e-6
