"""Compute the Gram matrix in velocity space, for a balance at every step without a backward pass per reward.

With J the Jacobian of the velocities, g_k = J^T dL_k/dv. So the norm of the combined gradient is at most |J|
times the norm of the combined dL_k/dv, which the balance minimises (MGDA-UB, arXiv 1810.04650, section 3.3).
"""

from torch import Tensor


def output_gram(
    positive: Tensor,
    cross: Tensor,
    negative: Tensor,
    p: Tensor,
    q: Tensor,
    *,
    clip: float,
    beta: float,
    count: int,
) -> Tensor:
    """Compute inner products of dL_k/dv over B samples; micro-batches of a step add up to the step's matrix.

    L_k = (A_max / beta) sum_i (p_ki P_i + q_ki N_i) / count, and a sample's velocity enters its own terms
    only. So <dL_k/dv, dL_l/dv> needs three numbers per sample.

    Args:
        positive: [B] |dP_i/dv|^2.
        cross: [B] dP_i/dv . dN_i/dv.
        negative: [B] |dN_i/dv|^2.
        p: [K, B] coefficients of the P_i.
        q: [K, B] coefficients of the N_i.
        clip: A_max.
        beta: guidance strength of the implicit policies.
        count: samples in the whole step.

    Returns:
        [K, K] float64 on the device of `p`, which is that of all, exactly symmetric.
    """
    positive, cross, negative, p, q = (z.detach().double() for z in (positive, cross, negative, p, q))
    mixed = (p * cross) @ q.T
    total = (p * positive) @ p.T + mixed + mixed.T + (q * negative) @ q.T
    return (total + total.T) / 2 * (clip / beta / count) ** 2
