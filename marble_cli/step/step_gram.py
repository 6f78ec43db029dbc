"""Compute the step's Gram matrix, of the rewards' gradients in the weights or in the velocities.

That in the weights is estimated from a share of the micro-batches. Only this share takes the rewards'
gradients separately (`balance.refresh_fraction`). A loss's row is scaled up by its samples in training over
those in the share, so that losses which the share happens to hold more or less of are compared alike.
"""

import torch
from torch import Tensor

from marble_cli.balance.gram import gram
from marble_cli.balance.output_space import output_gram
from marble_cli.objective.coefficients import Coefficients
from marble_cli.objective.nft import velocity_products
from marble_cli.step.batches import Chunk, chunks, draw_kl, noised_batches, split
from marble_cli.step.gradients import Gradients
from marble_cli.step.passes import Step
from marble_cli.step.reward_signal import Signal


def all_chunks(step: Step) -> list[Chunk]:
    """Cut this rank's images into the step's micro-batches, and draw those with a KL term."""
    objective = step.objective
    parts = chunks(step.data, objective.micro_batch_size)
    return draw_kl(parts, objective.kl_every, objective.seed, step.number)


def images_of(losses: Coefficients, signal: Signal) -> Tensor:
    """Return [R, n] bool, the images of R losses: those of the K rewards, then those of mixtures of rewards.

    A mixture may leave out images that a reward applies to. Its shared term is inside, and tells the others.
    """
    mixtures = (losses.p + losses.q > 0.0)[len(signal.applicable) :]
    return torch.cat([signal.applicable, mixtures])


def choose_chunks(step: Step, images: Tensor, fraction: float) -> tuple[list[Chunk], list[Chunk]]:
    """Choose the micro-batches that take the rewards' gradients separately; return them and the others.

    All are chosen if the share has no sample of a loss whose `images` [R, n] are in training.
    """
    parts = all_chunks(step)
    chosen, others = split(parts, fraction)
    seen, every = (_count_samples(step, some, images) for some in (chosen, parts))
    missed = (every > 0) & (seen == 0)
    return (parts, []) if missed.any() else (chosen, others)


def step_gram(step: Step, chosen: list[Chunk], images: Tensor, gradients: Gradients) -> Tensor:
    """Return the main rank's estimate of the step's Gram matrix, on all ranks.

    Args:
        step: data and layout.
        chosen: the micro-batches that were gone through.
        images: [R, n] bool, of R losses.
        gradients: of these losses over `chosen`, and in a last row of the shared loss. With the losses in
            halves (`step.staleness.in_halves`) there are 2 R.

    Returns:
        [R, R] float64, or [2 R, 2 R] in halves, without the last row.
    """
    matrix = step.layout.sum_over_shards(gram(gradients.rows[:-1]))
    if len(chosen) < len(all_chunks(step)):
        seen, every = (_count_samples(step, some, images) for some in (chosen, all_chunks(step)))
        scale = torch.where(seen > 0, every / seen, 0.0).repeat(len(matrix) // len(images))
        matrix = matrix * scale[:, None] * scale
    return step.layout.ranks.broadcast(matrix)


@torch.no_grad()
def velocity_gram(step: Step, parts: list[Chunk], rewards: Coefficients) -> Tensor:
    """Compute the Gram matrix of the rewards' gradients in this rank's velocities, by forward passes alone.

    Returns:
        [K, K] float64; the matrices of all ranks add up to the step's.
    """
    objective, rewards = step.objective, step.weigh(rewards).to(step.policy.device)
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


def _count_samples(step: Step, parts: list[Chunk], images: Tensor) -> Tensor:
    """Count [R] samples of `images` [R, n] in micro-batches whose rows all ranks share."""
    return images[:, step.data.images(torch.cat([part.rows for part in parts]))].sum(1)
