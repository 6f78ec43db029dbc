"""Make the coefficients of the DiffusionNFT loss, in which rewards and mixtures of rewards differ.

A loss over the step is sum_i (p_i P_i + q_i N_i), scaled. The halves P_i and N_i do not depend on rewards
(`marble_cli.objective.nft`). So a reward is a pair of rows p and q, and a mixture of rewards is a weighted
sum of such rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from marble_cli.config.enums import SharedTerm


@dataclass(frozen=True)
class Coefficients:
    """Coefficients `p` of the P_i and `q` of the N_i, float64: [n] of one loss, [R, n] of R losses."""

    p: Tensor
    q: Tensor

    def of(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coefficients of the images with these indices."""
        return self.p[..., images], self.q[..., images]

    def to(self, device: torch.device) -> "Coefficients":
        """Move both to a device."""
        return Coefficients(self.p.to(device), self.q.to(device))

    def plus(self, other: "Coefficients") -> "Coefficients":
        """Append the rows of other losses."""
        return Coefficients(torch.cat([self.p, other.p]), torch.cat([self.q, other.q]))


@dataclass(frozen=True)
class RewardCoefficients:
    """Coefficients of every reward's own loss and of the part outside the balance, made once per step.

    Attributes:
        rewards: [K, n], of the losses that the balance weighs.
        shared: [n], of the loss that is added once, whatever the weights; zero with the shared term inside.
    """

    rewards: Coefficients
    shared: Coefficients

    def combined(self, weights: Tensor) -> Coefficients:
        """Mix the rewards into one loss; as the loss is affine, its gradient is exactly sum_k w_k g_k + c.

        p_i = sum_k w_k p_ki + shared_i and q_i alike. With the shared term inside these are the
        p_i = sum_k w_k m_ki r_ki n / n_k and q_i = sum_k w_k m_ki (1 - r_ki) n / n_k of the algorithm page.

        Args:
            weights: [K] float64 direction weights w_k.

        Source: arXiv 2605.06507; the exact form for directions is this project's.
        """
        return Coefficients(
            weights @ self.rewards.p + self.shared.p, weights @ self.rewards.q + self.shared.q
        )


def reward_coefficients(
    optimality: Tensor, applicable: Tensor, *, shared_term: SharedTerm = SharedTerm.inside
) -> RewardCoefficients:
    """Return the coefficients with which a reward's loss is L_k = (1/n_k) sum_i m_ki l_i(r_ki).

    Args:
        optimality: [K, n] r_ki; the value is ignored where not applicable.
        applicable: [K, n] bool m_ki; rewards that apply nowhere get rows of zeros.
        shared_term: `outside` takes out of every L_k the part that does not depend on the reward,
            (P_i + N_i) / 2, so that gradients are the h_k of the algorithm page. That part enters once, as
            `shared`: its mean over the images that any reward applies to. An image without a score moves
            nothing.
    """
    images = applicable.shape[1]
    share = applicable.double() * (images / applicable.double().sum(1, keepdim=True).clamp(min=1))
    r = torch.where(applicable, optimality.double(), 0.5)
    if shared_term is SharedTerm.inside:
        nothing = torch.zeros(images, dtype=torch.float64, device=share.device)
        return RewardCoefficients(Coefficients(share * r, share * (1.0 - r)), Coefficients(nothing, nothing))
    scored = applicable.any(0).double()
    half = 0.5 * scored * (images / scored.sum().clamp(min=1))
    return RewardCoefficients(Coefficients(share * (r - 0.5), share * (0.5 - r)), Coefficients(half, half))


def advantage_coefficients(alpha: Tensor, advantage: Tensor, applicable: Tensor, clip: float) -> Coefficients:
    """Mix the advantages by the balance's shares, as published; for comparison.

    r_i = clip(sum_k a_k A_ki / (2 A_max) + 1/2, 0, 1), p_i = r_i, q_i = 1 - r_i. The gradient of this loss is
    not the balanced direction: shares found for unit gradients act on raw ones, and the n / n_k of the masks
    are lost.

    Args:
        alpha: [K] shares.
        advantage: [K, n]; the value is ignored where not applicable.
        applicable: [K, n] bool. An image that no reward applies to has r_i = 1/2, as published, and pulls the
            policy towards the behaviour policy.
        clip: A_max.

    Returns:
        Coefficients [n].

    Source: the code published with arXiv 2605.06507.
    """
    shares = alpha.to(advantage.device).double()[:, None]
    mixed = (torch.where(applicable, advantage.double(), 0.0) * shares).sum(0)
    r = (mixed / (2.0 * clip) + 0.5).clamp(0.0, 1.0)
    return Coefficients(r, 1.0 - r)
