"""MARBLE and MGDA: closed forms, an enumeration of all supports, and the properties of every solution."""

from itertools import combinations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from marble_cli.balance import Solution, cosines, gram
from marble_cli.balance.marble import LeastNorm
from marble_cli.balance.simplex import gap
from marble_cli.balance.solver import MAXIMUM_GAP, least_norm, solvers
from marble_cli.errors import BalanceError
from tests.balance.properties import (
    assert_certified,
    assert_non_conflicting,
    assert_permutation_equivariant,
    assert_same_direction_in_any_order,
    assert_scale_invariant,
    direction,
    unit_direction,
)

KINDS = ["plain", "scaled", "duplicate", "opposite", "correlated", "near_duplicate", "rank_one"]
GRADIENTS = st.builds(
    lambda seed, rewards, size, kind: sample(seed, rewards, size, kind),
    seed=st.integers(0, 2**31),
    rewards=st.integers(1, 12),
    size=st.sampled_from([1, 2, 3, 6, 40]),
    kind=st.sampled_from(KINDS),
)


def sample(seed: int, rewards: int, size: int, kind: str) -> Tensor:
    """K gradients [K, P] in float64 with the named difficulty."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    gradients = normal(rewards, size)
    pairs = rewards // 2
    match kind:
        case "scaled":
            gradients *= 10.0 ** torch.linspace(-6, 6, rewards, dtype=torch.float64)[:, None]
        case "duplicate":
            gradients[pairs : 2 * pairs] = gradients[:pairs]
        case "opposite":
            gradients[pairs : 2 * pairs] = -3.0 * gradients[:pairs]
        case "correlated":
            gradients = 0.01 * gradients + normal(1, size)
        case "near_duplicate":
            gradients = 1e-7 * gradients + normal(1, size)
        case "rank_one":
            gradients = normal(rewards, 1) * normal(1, size)
    return gradients


def enumerate_supports(matrix: np.ndarray, floor: float) -> float:
    """Return the least a^T G a over the feasible a.

    It is that of the best feasible stationary point over every set of free coefficients.
    """
    size, best = len(matrix), np.inf
    for count in range(1, size + 1):
        for free in combinations(range(size), count):
            fixed = [k for k in range(size) if k not in free]
            a = np.full(size, floor)
            system = np.zeros((count + 1, count + 1))
            system[:count, :count] = matrix[np.ix_(free, free)]
            system[count, :count] = system[:count, count] = 1.0
            right = np.append(-matrix[np.ix_(free, fixed)] @ a[fixed], 1.0 - floor * len(fixed))
            a[list(free)] = np.linalg.lstsq(system, right, rcond=1e-13)[0][:count]
            if a.min() >= floor - 1e-9 and abs(a.sum() - 1.0) < 1e-9:
                best = min(best, a @ matrix @ a)
    return float(best)


def assert_solves(solution: Solution, gradients: Tensor, floor: float = 0.0) -> None:
    """Feasible, certified and, without a floor, against no reward."""
    assert_certified(solution, floor)
    if floor == 0.0:
        assert_non_conflicting(solution, gradients)


@given(gradients=GRADIENTS, unit=st.booleans(), floor=st.sampled_from([0.0, 0.05, 1.0 / 12]))
@settings(max_examples=200, deadline=None)
def test_solutions_are_feasible_certified_and_descend_for_all(
    gradients: Tensor, unit: bool, floor: float
) -> None:
    assert_solves(LeastNorm(unit, floor)(gram(gradients)), gradients, floor)


@given(gradients=GRADIENTS, floor=st.sampled_from([0.0, 0.1]))
@settings(max_examples=60, deadline=None)
def test_the_optimum_is_the_best_of_all_supports(gradients: Tensor, floor: float) -> None:
    gradients = gradients[:6]
    solution = LeastNorm(floor=floor)(gram(gradients))
    unit = gradients / gradients.norm(dim=1, keepdim=True)
    matrix = (unit @ unit.T).numpy()
    reached = float(solution.alpha.numpy() @ matrix @ solution.alpha.numpy())
    assert reached == pytest.approx(enumerate_supports(matrix, floor), abs=1e-9)


@given(gradients=GRADIENTS, seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_the_order_of_rewards_does_not_matter(gradients: Tensor, seed: int) -> None:
    order = torch.randperm(len(gradients), generator=torch.Generator().manual_seed(seed))
    assert_same_direction_in_any_order(LeastNorm(), gradients, order)
    singular = torch.linalg.svdvals(gradients / gradients.norm(dim=1, keepdim=True))
    if len(gradients) <= gradients.shape[1] and singular.min() > 1e-2:
        assert_permutation_equivariant(LeastNorm(), gradients, order)


@given(gradients=GRADIENTS, seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_the_scale_of_a_reward_does_not_matter(gradients: Tensor, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** (12 * torch.rand(len(gradients), 1, generator=generator, dtype=torch.float64) - 6)
    assert_scale_invariant(LeastNorm(), gradients, scale)


def test_two_gradients_in_closed_form() -> None:
    """Unit gradients share equally; raw ones by the foot of the perpendicular, or the shorter alone."""
    gradients = torch.tensor([[3.0, 0.0], [-1.0, 2.0]], dtype=torch.float64)
    marble = LeastNorm()(gram(gradients))
    torch.testing.assert_close(marble.alpha, torch.tensor([0.5, 0.5], dtype=torch.float64))
    norms = gradients.norm(dim=1)
    torch.testing.assert_close(marble.weights, 0.5 * norms.mean() / norms)
    mgda = LeastNorm(unit=False)(gram(gradients))
    torch.testing.assert_close(mgda.alpha, torch.tensor([0.4, 0.6], dtype=torch.float64))
    torch.testing.assert_close(mgda.weights, mgda.alpha)
    shorter = LeastNorm(unit=False)(gram(torch.tensor([[5.0, 0.0], [1.0, 0.1]])))
    torch.testing.assert_close(shorter.alpha, torch.tensor([0.0, 1.0], dtype=torch.float64))


def test_orthogonal_gradients_share_equally() -> None:
    gradients = torch.diag(10.0 ** torch.linspace(-6, 6, 7, dtype=torch.float64))
    solution = LeastNorm()(gram(gradients))
    torch.testing.assert_close(solution.alpha, torch.full((7,), 1 / 7, dtype=torch.float64))
    along = cosines(gram(gradients), solution.weights)
    torch.testing.assert_close(along, torch.full((7,), 7**-0.5, dtype=torch.float64))


def test_the_floor_holds_against_the_optimum() -> None:
    gradients = torch.tensor([[1.0, 0.0], [0.8, 0.6], [-0.8, 0.6]], dtype=torch.float64)
    assert LeastNorm()(gram(gradients)).alpha[1] == 0.0
    solution = LeastNorm(floor=0.2)(gram(gradients))
    assert solution.alpha[1].item() == pytest.approx(0.2, abs=1e-12)
    equal = LeastNorm(floor=1 / 3)(gram(gradients))
    torch.testing.assert_close(equal.alpha, torch.full((3,), 1 / 3, dtype=torch.float64))


@pytest.mark.parametrize("unit", [True, False])
def test_duplicates_share_equally(unit: bool) -> None:
    gradients = torch.tensor([[1.0, 0.3, 0.0], [1.0, 0.3, 0.0], [-0.2, 1.0, 0.0]], dtype=torch.float64)
    solution = LeastNorm(unit)(gram(gradients))
    assert solution.alpha[0].item() == pytest.approx(solution.alpha[1].item(), abs=1e-7)
    alone = LeastNorm(unit)(gram(gradients[1:]))
    assert solution.alpha[:2].sum().item() == pytest.approx(alone.alpha[0].item(), abs=1e-9)


def test_opposite_gradients_leave_no_direction() -> None:
    gradients = torch.tensor([[1.0, 2.0], [-3.0, -6.0]], dtype=torch.float64)
    solution = LeastNorm()(gram(gradients))
    assert unit_direction(solution, gradients).norm() < 1e-12
    assert (cosines(gram(gradients), solution.weights) == 0.0).all()


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf"), -float("inf")])
def test_a_reward_without_a_finite_gradient_is_left_out(unit: bool, bad: float) -> None:
    gradients = sample(5, 4, 9, "plain").float()
    spoilt = gradients.clone()
    spoilt[2] = 0.0
    spoilt[2, 3] = bad
    solution = LeastNorm(unit, floor=0.05)(gram(spoilt))
    assert solution.active.tolist() == [True, True, False, True]
    assert_solves(solution, spoilt, 0.05)
    others = LeastNorm(unit, floor=0.05)(gram(gradients[[0, 1, 3]]))
    torch.testing.assert_close(solution.weights[[0, 1, 3]], others.weights)


@pytest.mark.parametrize("unit", [True, False])
def test_a_single_active_gradient_is_the_direction(unit: bool) -> None:
    gradients = torch.stack([torch.zeros(5), torch.randn(5, generator=torch.Generator().manual_seed(0))])
    solution = LeastNorm(unit)(gram(gradients))
    torch.testing.assert_close(solution.weights, torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(direction(solution, gradients), gradients[1].double())


def test_without_an_active_gradient_weights_are_zero() -> None:
    solution = LeastNorm()(gram(torch.tensor([[0.0, 0.0], [torch.nan, 1.0]])))
    assert not solution.active.any()
    assert (solution.weights == 0.0).all()
    assert solution.solver == "none"
    assert_solves(solution, torch.zeros(2, 2))


@pytest.mark.parametrize("rewards", [1, 2, 3, 5, 17, 64, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_up_to_128_rewards_are_solved(rewards: int, kind: str) -> None:
    for size in (3, 200):
        gradients = sample(rewards, rewards, size, kind)
        assert_solves(LeastNorm()(gram(gradients)), gradients)
        assert_solves(LeastNorm(unit=False)(gram(gradients)), gradients)


@pytest.mark.parametrize("solver", solvers())
def test_every_solver_finds_the_same_direction(solver: str) -> None:
    for seed in range(6):
        gradients = sample(seed, 7, 5, KINDS[seed])
        reference = LeastNorm()(gram(gradients))
        solution = LeastNorm(solver=solver)(gram(gradients))
        assert_solves(solution, gradients)
        torch.testing.assert_close(
            unit_direction(solution, gradients), unit_direction(reference, gradients), rtol=0.0, atol=1e-6
        )


def test_a_solver_that_fails_is_counted() -> None:
    matrix = (sample(1, 4, 9, "correlated") @ sample(1, 4, 9, "correlated").T).numpy()
    optimum = least_norm(matrix, solver="active_set")
    assert (optimum.solver, optimum.fallbacks) == ("active_set", 0)
    optimum = least_norm(matrix, solver="a solver that is not there")
    assert (optimum.solver, optimum.fallbacks) == ("active_set", 1)
    assert optimum.gap <= MAXIMUM_GAP


def test_a_matrix_whose_gap_cannot_close_is_refused() -> None:
    """No Gram matrix has a negative eigenvalue; of this one no solution's gap closes."""
    with pytest.raises(BalanceError, match="gap"):
        least_norm(np.array([[1.0, -3.0, 1.5], [-3.0, 1.0, -3.0], [1.5, -3.0, 1.0]]))


def test_a_solution_depends_on_its_matrix_alone() -> None:
    """Bit for bit, whatever was solved before: a resumed run must repeat an uninterrupted one."""
    matrices = [gram(sample(seed, 5, 50, "correlated")) for seed in range(4)]
    first = [LeastNorm()(m) for m in matrices]
    second = [LeastNorm()(m) for m in reversed(matrices)][::-1]
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.alpha, b.alpha)
        assert torch.equal(a.weights, b.weights)


def test_the_gap_is_the_distance_to_the_best_vertex() -> None:
    matrix = np.array([[1.0, 0.5], [0.5, 4.0]])
    assert gap(matrix, np.array([1.0, 0.0])) == pytest.approx(0.5)
    assert gap(matrix, np.array([0.0, 1.0])) == pytest.approx(3.5)
    assert gap(matrix, np.array([0.875, 0.125])) == pytest.approx(0.0)
