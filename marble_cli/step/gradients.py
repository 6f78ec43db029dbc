"""Policy gradients of one step: of one mixture of the rewards, or of every reward apart."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from marble_cli.balance.output_space import output_gram
from marble_cli.distributed.layout import GradientRows, Layout
from marble_cli.distributed.shards import local
from marble_cli.objective.coefficients import Coefficients
from marble_cli.objective.nft import NftTerms, kl_term, mixed_loss, nft_terms, velocity_products
from marble_cli.policy.base import Policy
from marble_cli.step.batches import Chunk, NoisedBatch, TrainingSet, noised_batches
from marble_cli.step.per_sample import PerSampleGradients

LARGEST = 2.0**-4  # of a cotangent: gradients, sums over many tokens, must not overflow float16 either


@dataclass(frozen=True)
class Objective:
    """Constants of the loss: beta, A_max, the KL coefficient, the run's seed and the images a micro-batch."""

    beta: float
    clip: float
    kl_coef: float
    seed: int
    micro_batch_size: int


@dataclass(frozen=True)
class Gradients:
    """Of R losses over all ranks' micro-batches: `rows` [R, n] in the dtype of the n parameters that this rank holds.

    `losses` [R + 1] float64 are the policy losses and, last, the KL term.
    """

    rows: Tensor
    losses: Tensor


@dataclass(frozen=True)
class Pass:
    """A micro-batch and its velocities [B, C, H, W]: `v_theta` with a graph behind it, the others without."""

    batch: NoisedBatch
    v_theta: Tensor
    v_old: Tensor
    v_ref: Tensor

    def terms(self, v: Tensor, beta: float) -> NftTerms:
        """The halves of the loss at trained velocities `v`."""
        return nft_terms(self.batch.x0, self.batch.xt, self.batch.t, v, self.v_old, beta=beta)


@dataclass(frozen=True)
class Step:
    """All that one step's gradients are taken of, on this rank."""

    policy: Policy
    layout: Layout
    data: TrainingSet
    objective: Objective
    number: int
    advance: Callable[[int], None]  # told how many samples each micro-batch held

    def passes(self, parts: list[Chunk]) -> Iterator[Pass]:
        """Forward passes over `parts`; the frozen model's is spared where no KL term asks for it."""
        policy = self.policy
        for batch in noised_batches(self.data, parts, self.objective.seed, self.number):
            at = (batch.xt, batch.t, batch.embeddings)
            with torch.no_grad():
                v_old = policy.velocity(*at, "behaviour")
                v_ref = policy.velocity(*at, None) if self.objective.kl_coef else v_old
            yield Pass(batch, policy.velocity(*at, "trained"), v_old, v_ref)
            self.advance(len(batch.indices))

    def loss(self, one: Pass, v: Tensor, terms: NftTerms, mixture: Coefficients) -> tuple[Tensor, Tensor]:
        """Policy loss of one mixture and KL term at velocities `v`, as parts of the step's."""
        objective, count = self.objective, self.data.samples
        p, q = mixture.of(one.batch.indices)
        policy = mixed_loss(terms, p, q, clip=objective.clip, beta=objective.beta, count=count)
        return policy, objective.kl_coef * kl_term(v, one.v_ref).sum() / count


def mixture_gradient(step: Step, parts: list[Chunk], mixture: Coefficients) -> Gradients:
    """Gradient of one mixture and the KL term together, R = 1: one backward pass a micro-batch."""
    parameters = list(step.policy.parameters("trained").values())
    rows, losses = step.layout.new_rows(parameters, per_sample=0, autograd=1), _no_losses(1)
    with step.layout.raise_together():
        for one in step.passes(parts):
            v = one.v_theta.detach().requires_grad_()
            policy, kl = step.loss(one, v, one.terms(v, step.objective.beta), mixture)
            _backward(step, one, policy + kl, v, parameters, rows.autograd[0])
            losses += torch.stack([policy, kl]).detach().double().cpu()
    return _summed(step, rows, parameters, losses)


def reward_gradients(step: Step, parts: list[Chunk], rewards: Coefficients, rest: Coefficients) -> Gradients:
    """Gradients of K losses and, in a last row, of the mixture `rest` and the KL term; R = K + 1.

    Args:
        step: policy, data and constants.
        parts: the micro-batches to go through.
        rewards: of K losses.
        rest: of one.
    """
    layers = step.policy.layers()
    if layers is None:
        return _one_by_one(step, parts, rewards, rest)
    return _by_mixing(step, parts, rewards, rest, layers)


def _one_by_one(step: Step, parts: list[Chunk], rewards: Coefficients, rest: Coefficients) -> Gradients:
    """One backward pass a row, whatever the parameters are of; none where the whole step, on all ranks, has no coefficients."""
    parameters = list(step.policy.parameters("trained").values())
    count = len(rewards.p) + 1
    rows, losses = step.layout.new_rows(parameters, per_sample=0, autograd=count), _no_losses(count)
    p, q = torch.cat([rewards.p, rest.p[None]]), torch.cat([rewards.q, rest.q[None]])
    taken = p.any(1) | q.any(1)
    taken[-1] |= bool(step.objective.kl_coef)
    last = max(taken.nonzero().flatten().tolist(), default=None)
    # what is compiled takes one backward pass a forward pass
    with step.layout.raise_together(), torch.compiler.set_stance("force_eager"):
        for one in step.passes(parts):
            v = one.v_theta.detach().requires_grad_()
            terms = one.terms(v, step.objective.beta)
            for k, row in enumerate(rows.autograd):
                policy, kl = step.loss(one, v, terms, Coefficients(p[k], q[k]))
                losses[k] += policy.item()
                if taken[k]:
                    loss = policy + kl if k == count - 1 else policy
                    _backward(step, one, loss, v, parameters, row, further=k != last)
            losses[-1] += kl.item()
    return _summed(step, rows, parameters, losses)


def _by_mixing(
    step: Step, parts: list[Chunk], rewards: Coefficients, rest: Coefficients, layers: list[nn.Linear]
) -> Gradients:
    """One backward pass, or two, for all rows but the last, and one for that.

    A loss splits into (p + q) (P + N) / 2 + (p - q) (P - N) / 2. Each half takes one backward pass whatever K is
    (`PerSampleGradients`), and the even half none where its coefficients vanish, as they do with the shared term outside.
    """
    parameters = list(step.policy.parameters("trained").values())
    count = len(rewards.p)
    rows, losses = step.layout.new_rows(parameters, per_sample=count, autograd=1), _no_losses(count + 1)
    scale = step.objective.clip / step.objective.beta / step.data.samples
    even, odd = scale * (rewards.p + rewards.q), scale * (rewards.p - rewards.q)
    with_rest = bool(rest.p.any() or rest.q.any() or step.objective.kl_coef)
    mixer = PerSampleGradients(layers, rows.per_sample)
    with step.layout.raise_together(), mixer.watching():
        for one in step.passes(parts):
            images = one.batch.indices
            v = one.v_theta.detach().requires_grad_()
            terms = one.terms(v, step.objective.beta)
            policy, kl = step.loss(one, v, terms, rest)
            sides = [
                (((terms.positive + sign * terms.negative) / 2).sum(), c[:, images])
                for sign, c in ((1, even), (-1, odd))
                if c.any()
            ]
            for left, (side, c) in zip(range(len(sides) - 1, -1, -1), sides, strict=True):
                (cotangent,) = torch.autograd.grad(side, v, retain_graph=True)
                scaled, factor = _representable(step, cotangent)
                mixer.mix(one.v_theta, scaled, factor * c, retain_graph=with_rest or left > 0)
            if with_rest:
                _backward(step, one, policy + kl, v, parameters, rows.autograd[0])
            p, q = rewards.of(images)
            each = scale * (
                p @ terms.positive.detach().double().cpu() + q @ terms.negative.detach().double().cpu()
            )
            losses += torch.cat([each, torch.stack([policy, kl]).detach().double().cpu()])
    return _summed(step, rows, parameters, losses)


@torch.no_grad()
def velocity_gram(step: Step, parts: list[Chunk], rewards: Coefficients) -> Tensor:
    """Gram matrix [K, K] float64 of the rewards' gradients with respect to this rank's velocities, by forward passes."""
    total = torch.zeros(len(rewards.p), len(rewards.p), dtype=torch.float64)
    objective = step.objective
    with step.layout.raise_together():
        for batch in noised_batches(step.data, parts, objective.seed, step.number):
            at = (batch.xt, batch.t, batch.embeddings)
            v_old, v_theta = (step.policy.velocity(*at, adapter) for adapter in ("behaviour", "trained"))
            products = velocity_products(batch.x0, batch.xt, batch.t, v_theta, v_old, beta=objective.beta)
            p, q = rewards.of(batch.indices)
            total += output_gram(
                products.positive, products.cross, products.negative, p, q,
                clip=objective.clip, beta=objective.beta, count=step.data.samples,
            )  # fmt: skip
    return total


def _no_losses(count: int) -> Tensor:
    return torch.zeros(count + 1, dtype=torch.float64)


def _summed(step: Step, rows: GradientRows, parameters: list[nn.Parameter], losses: Tensor) -> Gradients:
    """Gradients and losses over all ranks' samples.

    The losses come first, over gloo, which raises if a rank is gone. NCCL would wait on the GPU for ever for
    that rank's gradients, and a checkpoint's weights, asked of this GPU afterwards, would wait behind them.
    """
    losses = step.layout.ranks.all_reduce(losses)
    return Gradients(step.layout.reduce(rows, parameters), losses)


def _backward(
    step: Step,
    one: Pass,
    loss: Tensor,
    v: Tensor,
    parameters: list[nn.Parameter],
    row: Tensor,
    *,
    further: bool = False,
) -> None:
    """Add to `row` [n] the gradient of `loss`, a function of the leaf `v` in the place of `one.v_theta`.

    Parameters that take no part add nothing. `further`: another pass over the same graphs is to come.
    """
    (cotangent,) = torch.autograd.grad(loss, v, retain_graph=further)
    scaled, factor = _representable(step, cotangent)
    one.v_theta.backward(scaled, retain_graph=further)
    parts = row.split([local(parameter).numel() for parameter in parameters])
    for part, parameter in zip(parts, parameters, strict=True):
        if parameter.grad is not None:
            part.add_(local(parameter.grad).flatten(), alpha=factor)
            parameter.grad = None


def _representable(step: Step, cotangent: Tensor) -> tuple[Tensor, float]:
    """A cotangent brought to where half precision is at home, and what to multiply its gradients by.

    One number among millions is small: in float16 most of a cotangent of a mean would be zero. The factor is a power of
    two, so that in float32 nothing changes but the exponents. Where ranks sum their gradients before these are multiplied,
    all take the largest one's.
    """
    largest = cotangent.abs().max()
    if step.layout.sharded:
        largest = step.layout.ranks.all_reduce_max(largest)
    if not 0.0 < largest.item() < math.inf:
        return cotangent, 1.0
    factor = 2.0 ** (math.frexp(largest.item())[1] - math.frexp(LARGEST)[1])
    return cotangent / factor, factor
