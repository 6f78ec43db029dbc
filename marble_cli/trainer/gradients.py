"""Policy gradients of one step: any number of reward mixtures over the same forward passes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from marble_cli.balance.output_space import output_gram
from marble_cli.losses.nft import NftTerms, kl_term, mixed_loss, nft_terms, velocity_products
from marble_cli.policy.base import Policy, PromptEmbeddings
from marble_cli.randomness import generator, noise


@dataclass(frozen=True)
class TrainingSet:
    """What this rank trains on in one step.

    `x0` [m, C, H, W] and `embeddings` are this rank's images, `indices` [m] int64 their places among the step's n,
    `draws` [m] int64 which draw of noise each gets (equal numbers, equal noise),
    `times` [m, T] float32 the training times of each; `samples` is n T, over all ranks.
    """

    x0: Tensor
    embeddings: PromptEmbeddings
    indices: Tensor
    draws: Tensor
    times: Tensor
    samples: int


@dataclass(frozen=True)
class MicroBatch:
    """Differentiable loss terms [B] of some images at one training time each, and the images' `indices` [B]."""

    terms: NftTerms
    kl: Tensor
    indices: Tensor


@dataclass(frozen=True)
class Objective:
    """Constants of the loss: beta, A_max, the KL coefficient, the run's seed and the images a micro-batch."""

    beta: float
    clip: float
    kl_coef: float
    seed: int
    micro_batch_size: int


def training_times(
    times: Tensor, fraction: float, per_image: int | None, draws: list[int], seed: int, step: int
) -> Tensor:
    """Choose each image's training times among the solver's, leaving out the last share of the trajectory.

    Args:
        times: [S] float32, the solver's times, falling.
        fraction: share of them that is trained on (0.99 leaves out the last of up to 100).
        per_image: how many each image gets, drawn without replacement; None takes all.
        draws: of each image; images with equal numbers get the same times.
        seed: the run's seed.
        step: the optimizer step.

    Returns:
        [len(draws), T] float32.
    """
    usable = times[: max(1, int(len(times) * fraction))]
    count = len(usable) if per_image is None else min(per_image, len(usable))
    rows = [
        usable[torch.randperm(len(usable), generator=generator(seed, "times", step, i))[:count]]
        for i in draws
    ]
    return torch.stack(rows)


@dataclass(frozen=True)
class NoisedBatch:
    """Noised latents [B, C, H, W] of the images at `indices` [B], each at its own time `t` [B]."""

    x0: Tensor
    xt: Tensor
    t: Tensor
    embeddings: PromptEmbeddings
    indices: Tensor


def noised_batches(data: TrainingSet, objective: Objective, step: int) -> Iterator[NoisedBatch]:
    """Every image at every one of its training times, with noise that depends on seed, step, draw and time alone."""
    shape = tuple(data.x0.shape[1:])
    for column in range(data.times.shape[1]):
        for rows in torch.arange(len(data.x0)).split(objective.micro_batch_size):
            x0 = data.x0[rows]
            t = data.times[rows, column].to(x0)
            eps = noise(objective.seed, f"train{column}", step, data.draws[rows].tolist(), shape).to(x0)
            xt = torch.lerp(x0, eps, t[:, None, None, None])
            yield NoisedBatch(x0, xt, t, data.embeddings[rows.to(x0.device)], data.indices[rows])


def micro_batches(policy: Policy, data: TrainingSet, objective: Objective, step: int) -> Iterator[MicroBatch]:
    """Forward passes of the step: behaviour and base velocities without a graph, the trained one with."""
    for batch in noised_batches(data, objective, step):
        x0, xt, t = batch.x0, batch.xt, batch.t
        with torch.no_grad():
            v_ref = policy.velocity(xt, t, batch.embeddings, None)
            v_old = policy.velocity(xt, t, batch.embeddings, "behaviour")
        v_theta = policy.velocity(xt, t, batch.embeddings, "trained")
        terms = nft_terms(x0, xt, t, v_theta, v_old, beta=objective.beta)
        yield MicroBatch(terms, kl_term(v_theta, v_ref), batch.indices)


@torch.no_grad()
def velocity_gram(
    policy: Policy, data: TrainingSet, objective: Objective, p: Tensor, q: Tensor, step: int
) -> Tensor:
    """Gram matrix [K, K] float64 of the rewards' gradients with respect to this rank's velocities, by forward passes."""
    total = torch.zeros(len(p), len(p), dtype=torch.float64)
    for batch in noised_batches(data, objective, step):
        v_old = policy.velocity(batch.xt, batch.t, batch.embeddings, "behaviour")
        v_theta = policy.velocity(batch.xt, batch.t, batch.embeddings, "trained")
        products = velocity_products(batch.x0, batch.xt, batch.t, v_theta, v_old, beta=objective.beta)
        total += output_gram(
            products.positive, products.cross, products.negative, p[:, batch.indices], q[:, batch.indices],
            clip=objective.clip, beta=objective.beta, count=data.samples,
        )  # fmt: skip
    return total


def flat_gradient(loss: Tensor, parameters: list[torch.nn.Parameter], *, retain_graph: bool) -> Tensor:
    """Gradient of `loss` as one vector [P]; zero where a parameter takes no part."""
    parts = torch.autograd.grad(loss, parameters, retain_graph=retain_graph, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(parameter) if part is None else part).flatten()
            for part, parameter in zip(parts, parameters, strict=True)
        ]
    )


@dataclass(frozen=True)
class Gradients:
    """Summed over this rank's micro-batches, in the parameters' dtype: `rows` [R, P] and `kl` [P].

    `losses` [R + 1] float64 are the loss terms themselves, the last of them the KL term.
    """

    rows: Tensor
    kl: Tensor
    losses: Tensor


def gradients(
    policy: Policy,
    data: TrainingSet,
    objective: Objective,
    p: Tensor,
    q: Tensor,
    step: int,
    advance: Callable[[int], None],
) -> Gradients:
    """Gradients of R mixtures and of the KL term.

    With one mixture the KL term shares its backward pass (`kl` is zero then); with several, each is one
    vector-Jacobian product over the same graph.

    Args:
        policy: the model.
        data: images and times.
        objective: constants of the loss.
        p: [R, n] float64 coefficients of P_i.
        q: [R, n] float64 coefficients of N_i.
        step: the optimizer step, part of the noise's seed.
        advance: told how many samples each micro-batch held.
    """
    parameters = list(policy.parameters("trained").values())
    total = sum(parameter.numel() for parameter in parameters)
    rows = torch.zeros(len(p), total, device=policy.device, dtype=parameters[0].dtype)
    kl_gradient = torch.zeros_like(rows[0])
    losses = torch.zeros(len(p) + 1, dtype=torch.float64)
    for micro in micro_batches(policy, data, objective, step):
        kl = objective.kl_coef * micro.kl.sum() / data.samples
        mixed = [
            mixed_loss(
                micro.terms, p_row[micro.indices], q_row[micro.indices],
                clip=objective.clip, beta=objective.beta, count=data.samples,
            )
            for p_row, q_row in zip(p, q, strict=True)
        ]  # fmt: skip
        if len(mixed) == 1:
            rows[0] += flat_gradient(mixed[0] + kl, parameters, retain_graph=False)
        else:
            for row, loss in zip(rows, mixed, strict=True):
                row += flat_gradient(loss, parameters, retain_graph=True)
            kl_gradient += flat_gradient(kl, parameters, retain_graph=False)
        losses += torch.stack([*mixed, kl]).detach().double().cpu()
        advance(len(micro.indices))
    return Gradients(rows, kl_gradient, losses)
