"""Compute the DiffusionNFT loss (arXiv 2509.16117), with the rewards taken out of its expensive part.

The loss of image i is affine in its optimality r: l_i(r) = (A_max / beta) (r P_i + (1 - r) N_i). Three steps
make the loss of any reward, or of any mixture of rewards:

1. `nft_terms` compares two implicit policies with the drawn latent: P_i and N_i, which do not depend on
rewards. 2. `objective.coefficients` turns optimalities into coefficients p_i and q_i, per reward or mixture.
3. `mixed_loss` adds up p_i P_i + q_i N_i.

So one forward pass serves all rewards. `kl_term` is added outside the balance. `velocity_products` serves the
balance in velocity space, which needs no backward pass per reward.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MINIMUM_WEIGHT = 1e-5  # of w+ and w-, which divide the squared residuals


@dataclass(frozen=True)
class NftTerms:
    """The halves of the loss without rewards: `positive` P_i and `negative` N_i, both [B], differentiable."""

    positive: Tensor
    negative: Tensor


@dataclass(frozen=True)
class VelocityProducts:
    """Inner products of dP_i/dv and dN_i/dv, each [B]; they suffice for a Gram matrix in velocity space.

    Attributes:
        positive: |dP_i/dv|^2.
        cross: dP_i/dv . dN_i/dv.
        negative: |dN_i/dv|^2.
    """

    positive: Tensor
    cross: Tensor
    negative: Tensor


def nft_terms(x0: Tensor, xt: Tensor, t: Tensor, v_theta: Tensor, v_old: Tensor, *, beta: float) -> NftTerms:
    """Compare the two implicit policies' predictions of the clean latent with the drawn latent.

    With v+ = (1-beta) v_old + beta v_theta, v- = (1+beta) v_old - beta v_theta and x0± = x_t - t v±:
    P = mean((x0+ - x0)^2 / w+), where w+ = stop_grad(mean |x0+ - x0|) is at least 1e-5. N is the same of x0-.

    Args:
        x0: [B, ...] clean latents of the behaviour policy.
        xt: [B, ...] the same, noised: (1-t) x0 + t eps.
        t: [B] training times in (0, 1).
        v_theta: [B, ...] velocity of the trained policy, differentiable.
        v_old: [B, ...] velocity of the behaviour policy; no gradient flows into it.
        beta: guidance strength of the implicit policies.

    Returns:
        Terms in float32, also for inputs of lower precision, or in float64 if `v_theta` is.

    Source: arXiv 2509.16117.
    """
    positive, negative = _residuals(x0, xt, t, v_theta, v_old, beta)
    return NftTerms(_weighted_square(positive), _weighted_square(negative))


def mixed_loss(terms: NftTerms, p: Tensor, q: Tensor, *, clip: float, beta: float, count: int) -> Tensor:
    """Sum (A_max / beta) (p_i P_i + q_i N_i) / count; micro-batches of a step add up to the step's loss.

    Args:
        terms: of B samples.
        p: [B] coefficient of P_i.
        q: [B] coefficient of N_i.
        clip: A_max.
        beta: guidance strength of the implicit policies.
        count: samples in the whole step, over all micro-batches and ranks.

    Returns:
        Scalar, in the terms' dtype.
    """
    p, q = p.to(terms.positive), q.to(terms.negative)
    return (p * terms.positive + q * terms.negative).sum() * (clip / beta / count)


def kl_term(v_theta: Tensor, v_ref: Tensor) -> Tensor:
    """Return the mean squared distance of the trained velocity from the frozen model's, per sample.

    Args:
        v_theta: [B, ...] differentiable.
        v_ref: [B, ...]; no gradient flows into it.

    Returns:
        [B] float32, or float64 if `v_theta` is.
    """
    dtype = torch.promote_types(v_theta.dtype, torch.float32)
    return (v_theta.to(dtype) - v_ref.detach().to(dtype)).square().flatten(1).mean(1)


def velocity_products(
    x0: Tensor, xt: Tensor, t: Tensor, v_theta: Tensor, v_old: Tensor, *, beta: float
) -> VelocityProducts:
    """Compute inner products of dP_i/dv_theta and dN_i/dv_theta in closed form, without a backward pass.

    With D the number of elements of a sample and e± = x0± - x0, the derivatives are dP/dv = -2 t beta e+ / (D
    w+) and dN/dv = +2 t beta e- / (D w-). Arguments are those of `nft_terms`.

    Returns:
        Products in float32, or float64 if `v_theta` is; not differentiable.

    Source: the chain rule; its use is MGDA-UB's (arXiv 1810.04650, section 3.3).
    """
    with torch.no_grad():
        plus, minus = _residuals(x0, xt, t, v_theta, v_old, beta)
        slope = 2.0 * beta * t.to(plus.dtype)[:, None] / plus.shape[1]
        d_positive, d_negative = -slope * plus / _weight(plus), slope * minus / _weight(minus)
        return VelocityProducts(
            d_positive.square().sum(1), (d_positive * d_negative).sum(1), d_negative.square().sum(1)
        )


def _residuals(
    x0: Tensor, xt: Tensor, t: Tensor, v_theta: Tensor, v_old: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """Return x0+ - x0 and x0- - x0, [B, D] in at least float32: half precision loses small differences."""
    dtype = torch.promote_types(v_theta.dtype, torch.float32)
    x0, xt, v_theta, v_old = (z.to(dtype).flatten(1) for z in (x0, xt, v_theta, v_old.detach()))
    time = t.to(dtype)[:, None]
    v_plus = (1.0 - beta) * v_old + beta * v_theta
    v_minus = (1.0 + beta) * v_old - beta * v_theta
    return xt - time * v_plus - x0, xt - time * v_minus - x0


def _weight(residual: Tensor) -> Tensor:
    """Return [B, 1], the mean absolute residual of each sample, as a constant for the gradient."""
    return residual.detach().abs().mean(1, keepdim=True).clamp(min=MINIMUM_WEIGHT)


def _weighted_square(residual: Tensor) -> Tensor:
    return (residual.square() / _weight(residual)).mean(1)
