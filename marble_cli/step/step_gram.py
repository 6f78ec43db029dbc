"""Compute the step's Gram matrix, of the rewards' gradients in the weights or in the velocities.

That in the weights is estimated from a share of the micro-batches. Only this share takes the rewards'
gradients separately (`balance.refresh_fraction`). A reward's row is scaled up by its applicable samples in
the step over those in the share, so that rewards which the share happens to hold more or less of are compared
alike.
"""

import torch
from torch import Tensor

from marble_cli.balance.gram import gram
from marble_cli.balance.output_space import output_gram
from marble_cli.objective.coefficients import Coefficients
from marble_cli.objective.nft import velocity_products
from marble_cli.step.batches import Chunk, chunks, draw_kl, noised_batches, split
from marble_cli.step.gradients import Gradients, Step
from marble_cli.step.reward_signal import Signal


def all_chunks(step: Step) -> list[Chunk]:
    """Cut this rank's images into the step's micro-batches, and draw those with a KL term."""
    objective = step.objective
    parts = chunks(step.data, objective.micro_batch_size)
    return draw_kl(parts, objective.kl_every, objective.seed, step.number)


def choose_chunks(step: Step, signal: Signal, fraction: float) -> tuple[list[Chunk], list[Chunk]]:
    """Choose the micro-batches that take the rewards' gradients separately; return them and the others.

    All are chosen if the share has no sample of a reward that applies somewhere in the step.
    """
    parts = all_chunks(step)
    chosen, others = split(parts, fraction)
    missed = signal.applicable.any(1) & (_applicable_samples(step, chosen, signal.applicable) == 0)
    return (parts, []) if missed.any() else (chosen, others)


def step_gram(step: Step, chosen: list[Chunk], signal: Signal, gradients: Gradients) -> Tensor:
    """Return the main rank's estimate of the step's Gram matrix, on all ranks.

    Args:
        step: data and layout.
        chosen: the micro-batches that were gone through.
        signal: of the step.
        gradients: of R losses over `chosen`, and in a last row of the shared loss. The R losses are of the K
            rewards and then any others, or of the rewards in halves (`step.staleness.in_halves`).

    Returns:
        [R, R] float64, without the last row.
    """
    matrix = step.layout.sum_over_shards(gram(gradients.rows[:-1]))
    if len(chosen) < len(all_chunks(step)):
        # A row beyond the rewards' is of a mixture, of images that some reward applies to.
        applicable = torch.cat([signal.applicable, signal.applicable.any(0, keepdim=True)])
        seen, times = _applicable_samples(step, chosen, applicable), step.data.times.shape[1]
        scale = torch.where(seen > 0, applicable.sum(1) * times / seen, 0.0)
        count = len(signal.applicable)
        scale = scale[:count].repeat(2) if len(matrix) == 2 * count else scale[: len(matrix)]
        matrix = matrix * scale[:, None] * scale
    return step.layout.ranks.broadcast(matrix)


@torch.no_grad()
def velocity_gram(step: Step, parts: list[Chunk], rewards: Coefficients) -> Tensor:
    """Compute the Gram matrix of the rewards' gradients in this rank's velocities, by forward passes alone.

    Returns:
        [K, K] float64; the matrices of all ranks add up to the step's.
    """
    objective, rewards = step.objective, rewards.to(step.policy.device)
    total = torch.zeros(len(rewards.p), len(rewards.p), dtype=torch.float64, device=step.policy.device)
    with step.layout.raise_together():
        for batch in noised_batches(step.data, parts, objective.seed, step.number):
            at = (batch.xt, batch.t, batch.embeddings)
            v_old, v_theta = (step.policy.velocity(*at, adapter) for adapter in ("behaviour", "trained"))
            products = velocity_products(batch.x0, batch.xt, batch.t, v_theta, v_old, beta=objective.beta)
            p, q = rewards.of(batch.indices)
            total += output_gram(
                batch.without_padding(products.positive),
                batch.without_padding(products.cross),
                batch.without_padding(products.negative),
                p,
                q,
                clip=objective.clip,
                beta=objective.beta,
                count=step.data.samples,
            )
        return total.cpu()


def _applicable_samples(step: Step, chosen: list[Chunk], applicable: Tensor) -> Tensor:
    """Count [K] samples that are `applicable` [K, n] in the `chosen` micro-batches of all ranks.

    Every rank chooses the same rows of its own images, which are an equal, contiguous part of the step's.
    Beyond the step's images lies padding.
    """
    rows, each = torch.cat([part.rows for part in chosen]), len(step.data.x0)
    images = torch.cat([rows + rank * each for rank in range(step.layout.ranks.world)])
    return applicable[:, images[images < applicable.shape[1]]].sum(1)
