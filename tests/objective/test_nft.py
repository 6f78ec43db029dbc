"""The loss against its definition, image by image; its gradients against autograd and balanced sums."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from marble_cli.balance import gram, output_gram
from marble_cli.config.enums import AdvantageStd, SharedTerm
from marble_cli.objective.advantages import advantages, optimality
from marble_cli.objective.coefficients import (
    Coefficients,
    RewardCoefficients,
    advantage_coefficients,
    reward_coefficients,
)
from marble_cli.objective.nft import kl_term, mixed_loss, nft_terms, velocity_products

CLIP, BETA = 1.5, 0.2


@dataclass(frozen=True)
class Step:
    """A small step in float64: two times per image, uneven groups, masks, some advantages clipped."""

    net: nn.Module
    x0: Tensor
    xt: Tensor
    t: Tensor
    v_old: Tensor
    applicable: Tensor
    advantage: Tensor

    @property
    def r(self) -> Tensor:
        return optimality(self.advantage, CLIP)

    @property
    def count(self) -> int:
        return len(self.x0)

    def velocity(self, rows: slice = slice(None)) -> Tensor:
        features = torch.cat([self.xt[rows].flatten(1), self.t[rows, None]], dim=1)
        velocity: Tensor = self.net(features)
        return velocity.view_as(self.x0[rows])

    def coefficients(self, shared_term: str = "inside") -> RewardCoefficients:
        return reward_coefficients(self.r, self.applicable, shared_term=SharedTerm(shared_term))

    def gradient(self, mixture: Coefficients, micro_batches: int = 1) -> Tensor:
        """Return the flat gradient of the mixed loss; coefficients are [n], and each image has two times."""
        self.net.zero_grad()
        p, q = mixture.p.repeat_interleave(2), mixture.q.repeat_interleave(2)
        edges = torch.linspace(0, self.count, micro_batches + 1).long().tolist()
        for start, stop in pairwise(edges):
            rows = slice(start, stop)
            terms = nft_terms(
                self.x0[rows],
                self.xt[rows],
                self.t[rows],
                self.velocity(rows),
                self.v_old[rows],
                beta=BETA,
            )
            mixed_loss(terms, p[rows], q[rows], clip=CLIP, beta=BETA, count=self.count).backward()
        return torch.cat([z.grad.flatten() for z in self.net.parameters() if z.grad is not None])


@pytest.fixture
def step() -> Step:
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    groups = torch.repeat_interleave(torch.arange(4), torch.tensor([2, 7, 5, 3]))
    n = len(groups)
    applicable = torch.rand(5, n, generator=generator) < 0.6
    applicable[0] = True
    applicable[3] = False
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(13, 16), nn.Tanh(), nn.Linear(16, 12)).double()
    x0 = normal(n, 3, 2, 2).repeat_interleave(2, 0)
    t = torch.rand(2 * n, generator=generator, dtype=torch.float64) * 0.98 + 0.01
    time = t[:, None, None, None]
    return Step(
        net=net,
        x0=x0,
        xt=(1 - time) * x0 + time * normal(2 * n, 3, 2, 2),
        t=t,
        v_old=normal(2 * n, 3, 2, 2),
        applicable=applicable,
        advantage=advantages(normal(5, n) ** 3, applicable, groups, std=AdvantageStd.group),
    )


def naive_loss(step: Step, image_weight: Callable[[int], float], r: Callable[[int], float]) -> Tensor:
    """sum_i weight_i l_i(r_i) over images, each the mean of its two training times; scalars only."""
    total = torch.zeros((), dtype=torch.float64)
    v = step.velocity()
    for s in range(step.count):
        halves = []
        for sign in (1.0, -1.0):
            implicit = (1 - sign * BETA) * step.v_old[s] + sign * BETA * v[s]
            error = step.xt[s] - step.t[s] * implicit - step.x0[s]
            weight = max(error.abs().mean().item(), 1e-5)
            halves.append((error**2 / weight).mean())
        i = s // 2
        total = total + image_weight(i) * (r(i) * halves[0] + (1 - r(i)) * halves[1]) * (CLIP / BETA) / 2
    return total


def flat(loss: Tensor, net: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])


def reward_gradients(step: Step, shared_term: str = "inside") -> Tensor:
    return rows(step, step.coefficients(shared_term).rewards)


def rows(step: Step, rewards: Coefficients) -> Tensor:
    """[K, P]: the gradient of every reward's own loss."""
    return torch.stack([step.gradient(Coefficients(p, q)) for p, q in zip(rewards.p, rewards.q, strict=True)])


def relative(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


def test_the_example_has_every_difficulty(step: Step) -> None:
    assert (step.r == 0.0).any()
    assert (step.r == 1.0).any()
    assert 0.3 < step.applicable.double().mean() < 0.7


def test_each_rewards_loss_is_its_definition(step: Step) -> None:
    for k, gradient in enumerate(reward_gradients(step)):
        mask = step.applicable[k].tolist()
        loss = naive_loss(
            step,
            lambda i, mask=mask: mask[i] / max(sum(mask), 1),
            lambda i, k=k: step.r[k, i].item(),
        )
        expected = flat(loss, step.net)
        torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-13)
    assert gradient.norm() > 0.0


def test_a_reward_that_applies_nowhere_has_no_gradient(step: Step) -> None:
    assert (reward_gradients(step)[3] == 0.0).all()


@pytest.mark.parametrize("micro_batches", [1, 4, 9])
def test_one_backward_pass_is_the_balanced_direction(step: Step, micro_batches: int) -> None:
    weights = torch.tensor([0.3, 1.7, 0.02, 5.0, 0.9], dtype=torch.float64)
    got = step.gradient(step.coefficients().combined(weights), micro_batches)
    assert relative(got, weights @ reward_gradients(step)) < 1e-13


def test_the_shared_term_is_what_all_rewards_have_in_common(step: Step) -> None:
    everywhere = torch.ones_like(step.applicable)
    inside = reward_coefficients(step.r, everywhere)
    outside = reward_coefficients(step.r, everywhere, shared_term=SharedTerm.outside)
    assert not inside.shared.p.any()
    assert not inside.shared.q.any()
    shared = step.gradient(outside.shared)
    assert relative(rows(step, outside.rewards) + shared, rows(step, inside.rewards)) < 1e-13


def test_the_shared_term_enters_once(step: Step) -> None:
    weights = torch.tensor([0.3, 1.7, 0.02, 5.0, 0.9], dtype=torch.float64)
    made = step.coefficients("outside")
    expected = weights @ reward_gradients(step, "outside") + step.gradient(made.shared)
    assert relative(step.gradient(made.combined(weights), 4), expected) < 1e-13


def test_an_image_that_nobody_scored_moves_nothing(step: Step) -> None:
    applicable = step.applicable.clone()
    applicable[:, 4] = False
    weights = torch.ones(5, dtype=torch.float64)
    for shared_term in ("inside", "outside"):
        made = reward_coefficients(step.r, applicable, shared_term=SharedTerm(shared_term)).combined(weights)
        assert made.p[4] == made.q[4] == 0.0


def test_an_image_that_nobody_scored_is_neither_good_nor_bad_as_published(step: Step) -> None:
    """The r = 1/2: the mean over all images pulls it towards the behaviour policy."""
    applicable = step.applicable.clone()
    applicable[:, 4] = False
    alpha = torch.full((5,), 0.2, dtype=torch.float64)
    found = advantage_coefficients(alpha, step.advantage, applicable, CLIP)
    assert found.p[4] == found.q[4] == 0.5
    images = [i for i in range(applicable.shape[1]) if i != 4]
    everyone = advantage_coefficients(alpha, step.advantage, step.applicable, CLIP)
    assert torch.equal(found.p[images], everyone.p[images])
    assert torch.equal(found.q[images], everyone.q[images])
    lone = torch.zeros_like(found.p)
    lone[4] = 0.5
    without = step.gradient(Coefficients(found.p - lone, found.q - lone))
    torch.testing.assert_close(
        step.gradient(found), without + step.gradient(Coefficients(lone, lone)), rtol=1e-12, atol=1e-14
    )
    assert relative(step.gradient(found), without) > 1e-3


def test_mixing_advantages_is_another_direction(step: Step) -> None:
    """The published amortisation differs from the balanced direction as soon as there are masks."""
    gradients = reward_gradients(step)
    alpha = torch.tensor([0.4, 0.2, 0.2, 0.0, 0.2], dtype=torch.float64)
    published = advantage_coefficients(alpha, step.advantage, step.applicable, CLIP)
    mixed = (alpha[:, None] * step.advantage).sum(0)
    torch.testing.assert_close(published.p, (mixed / (2 * CLIP) + 0.5).clamp(0, 1))
    torch.testing.assert_close(published.p + published.q, torch.ones_like(mixed))
    assert relative(step.gradient(published), alpha @ gradients) > 1e-3


def test_for_one_reward_without_mask_all_ways_agree(step: Step) -> None:
    one = torch.ones(1, dtype=torch.float64)
    r, applicable = step.r[:1], step.applicable[:1]
    made = reward_coefficients(r, applicable)
    for other in (made.combined(one), advantage_coefficients(one, step.advantage[:1], applicable, CLIP)):
        torch.testing.assert_close(other.p, made.rewards.p[0])
        torch.testing.assert_close(other.q, made.rewards.q[0])


def test_the_gram_matrix_in_velocity_space_is_autograds(step: Step) -> None:
    velocity = step.velocity().detach().requires_grad_()
    terms = nft_terms(step.x0, step.xt, step.t, velocity, step.v_old, beta=BETA)
    rewards = step.coefficients().rewards
    p, q = (z.repeat_interleave(2, dim=1) for z in (rewards.p, rewards.q))
    rows = [
        torch.autograd.grad(
            mixed_loss(terms, p[k], q[k], clip=CLIP, beta=BETA, count=step.count),
            velocity,
            retain_graph=True,
        )[0].flatten()
        for k in range(5)
    ]
    total = torch.zeros(5, 5, dtype=torch.float64)
    for rows_of in (slice(0, 11), slice(11, None)):
        products = velocity_products(
            step.x0[rows_of],
            step.xt[rows_of],
            step.t[rows_of],
            velocity[rows_of],
            step.v_old[rows_of],
            beta=BETA,
        )
        total += output_gram(
            products.positive,
            products.cross,
            products.negative,
            p[:, rows_of],
            q[:, rows_of],
            clip=CLIP,
            beta=BETA,
            count=step.count,
        )
    torch.testing.assert_close(total, gram(torch.stack(rows)), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_precision_is_never_below_float32(step: Step, given: torch.dtype, kept: torch.dtype) -> None:
    velocity = step.velocity().detach().to(given).requires_grad_()
    x0, xt, v_old = step.x0.to(given), step.xt.to(given), step.v_old.to(given)
    terms = nft_terms(x0, xt, step.t.to(given), velocity, v_old, beta=BETA)
    p = torch.ones(step.count, dtype=torch.float64)
    loss = mixed_loss(terms, p, p, clip=CLIP, beta=BETA, count=step.count)
    assert {terms.positive.dtype, terms.negative.dtype, loss.dtype, kl_term(velocity, v_old).dtype} == {kept}
    loss.backward()
    assert velocity.grad is not None
    assert velocity.grad.isfinite().all()


def test_half_precision_inputs_lose_nothing_more(step: Step) -> None:
    """The loss of float16 inputs is that of the same numbers in float64, to float32's rounding."""
    half = [z.half() for z in (step.x0, step.xt, step.t, step.velocity().detach(), step.v_old)]
    low, high = nft_terms(*half, beta=BETA), nft_terms(*(z.double() for z in half), beta=BETA)
    torch.testing.assert_close(low.positive.double(), high.positive, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(low.negative.double(), high.negative, rtol=1e-5, atol=1e-6)


def test_a_perfect_prediction_has_a_finite_gradient(step: Step) -> None:
    """Where x0+ = x0 the adaptive weight stands at its minimum, so nothing is divided by zero."""
    time = step.t[:, None, None, None]
    exact = (step.xt - step.x0) / time
    velocity = exact.clone().requires_grad_()
    terms = nft_terms(step.x0, step.xt, step.t, velocity, exact, beta=BETA)
    (terms.positive + terms.negative).sum().backward()
    assert velocity.grad is not None
    assert velocity.grad.isfinite().all()
    assert terms.positive.max() < 1e-20


def test_no_gradient_reaches_the_behaviour_policy_or_the_base(step: Step) -> None:
    v_theta = step.velocity().detach().requires_grad_()
    v_old = step.v_old.clone().requires_grad_()
    terms = nft_terms(step.x0, step.xt, step.t, v_theta, v_old, beta=BETA)
    (terms.positive.sum() + kl_term(v_theta, v_old).sum()).backward()
    assert v_old.grad is None


def test_the_kl_term_is_a_mean_square(step: Step) -> None:
    v_theta = step.velocity()
    expected = torch.stack([((a - b) ** 2).mean() for a, b in zip(v_theta, step.v_old, strict=True)])
    torch.testing.assert_close(kl_term(v_theta, step.v_old), expected)
