"""Properties of balances, as assertions that apply to the answer of any of them.

Gradients are float64 rows [K, P], possibly zero or not finite. Balances map their Gram matrix to shares.
"""

import torch
from torch import Tensor

from marble_cli.balance import Balance, Solution, cosines, gram
from marble_cli.balance.solver import MAXIMUM_GAP


def direction(solution: Solution, gradients: Tensor) -> Tensor:
    """Return sum_k w_k g_k over the active rewards, [P]."""
    return solution.weights @ torch.where(solution.active[:, None], gradients.double(), 0.0)


def unit_direction(solution: Solution, gradients: Tensor) -> Tensor:
    """Return sum_k a_k g_k / |g_k|: what the QP determines uniquely, on a scale of one."""
    norms = torch.where(solution.active, gradients.double().norm(dim=1), 1.0)
    return solution.alpha @ (torch.where(solution.active[:, None], gradients.double(), 0.0) / norms[:, None])


def assert_active_only(solution: Solution) -> None:
    """Shares and weights are finite, and zero for rewards that are not active."""
    assert solution.alpha.isfinite().all()
    assert solution.weights.isfinite().all()
    assert (solution.alpha[~solution.active] == 0.0).all()
    assert (solution.weights[~solution.active] == 0.0).all()


def assert_shares_sum_to_one(solution: Solution, floor: float = 0.0) -> None:
    """Shares of the active rewards sum to one and reach the floor, both to 1e-12."""
    assert_active_only(solution)
    if solution.active.any():
        assert abs(solution.alpha.sum().item() - 1.0) < 1e-12
        assert solution.alpha[solution.active].min() >= floor - 1e-12


def assert_certified(solution: Solution, floor: float = 0.0) -> None:
    """The shares are feasible, and their gap is at most the maximum."""
    assert 0.0 <= solution.gap <= MAXIMUM_GAP
    assert_shares_sum_to_one(solution, floor)


def assert_non_conflicting(solution: Solution, gradients: Tensor, slack: float = 1e-6) -> None:
    """The direction has no negative cosine with any active gradient, and positive ones if it is not tiny."""
    if not solution.active.any():
        return
    along = cosines(gram(gradients), solution.weights)[solution.active]
    assert along.min() > -slack
    finite = torch.where(solution.active[:, None], gradients.double(), 0.0)
    if direction(solution, gradients).norm() > 1e-3 * (solution.weights @ finite.norm(dim=1)):
        assert along.min() > 0.0


def assert_permutation_equivariant(
    balance: Balance, gradients: Tensor, order: Tensor, atol: float = 1e-9
) -> None:
    """Reordering the rewards reorders their shares; only for gradients that determine their shares."""
    original, reordered = balance(gram(gradients)), balance(gram(gradients[order]))
    torch.testing.assert_close(original.alpha[order], reordered.alpha, rtol=0.0, atol=atol)


def assert_same_direction_in_any_order(
    balance: Balance, gradients: Tensor, order: Tensor, atol: float = 1e-6
) -> None:
    """Reordering the rewards does not change the direction, also if several shares would give it."""
    original, reordered = balance(gram(gradients)), balance(gram(gradients[order]))
    torch.testing.assert_close(
        unit_direction(original, gradients), unit_direction(reordered, gradients[order]), rtol=0.0, atol=atol
    )


def assert_scale_invariant(balance: Balance, gradients: Tensor, scale: Tensor, atol: float = 1e-6) -> None:
    """Scaling each gradient by its own factor [K, 1] does not change the direction of unit gradients."""
    original, scaled = balance(gram(gradients)), balance(gram(gradients * scale))
    torch.testing.assert_close(
        unit_direction(original, gradients), unit_direction(scaled, gradients), rtol=0.0, atol=atol
    )


def assert_repeatable(one: Balance, other: Balance, gradients: Tensor) -> None:
    """Two balances of the same settings give the same bits, whatever they solved before."""
    first, second = one(gram(gradients)), other(gram(gradients))
    assert torch.equal(first.alpha, second.alpha)
    assert torch.equal(first.weights, second.weights)
    assert (first.solver, first.fallbacks) == (second.solver, second.fallbacks)
