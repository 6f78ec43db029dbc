"""The loss against its definition, image by image, and its gradients against autograd."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from marble_cli.balance import gram, output_gram
from marble_cli.objective.nft import kl_term, mixed_loss, nft_terms, velocity_products
from tests.objective.example import BETA, CLIP, Step, reward_gradients


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
