"""Take one step's policy gradients: of one mixture of the rewards, or of every reward separately.

Both run forward passes over micro-batches and form losses from coefficients (`step.passes`), and return
`Gradients`, one row per loss, summed over all ranks. `mixture_gradient` takes one backward pass per
micro-batch. `reward_gradients` takes two or three, whatever the number of rewards, if all that is trained is
adapters of linear layers (`PerSampleGradients`), else one per reward.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from marble_cli.distributed.layout import GradientRows
from marble_cli.distributed.shards import local
from marble_cli.objective.coefficients import Coefficients
from marble_cli.step import compiled_per_sample
from marble_cli.step.batches import Chunk
from marble_cli.step.passes import ForwardPass, Step
from marble_cli.step.per_sample import PerSampleGradients
from marble_cli.step.rescale import rescale_cotangent


@dataclass(frozen=True)
class Gradients:
    """Gradients of R losses over all ranks' micro-batches.

    Attributes:
        rows: [R, n] in the dtype of the n parameters that this rank holds.
        losses: [R + 1] float64, the policy losses and, last, the KL term, whose gradient is in the last row.
        velocities: [2] float64, sums over the samples of mean |v_theta - v_old| and of mean |v_old|.
    """

    rows: Tensor
    losses: Tensor
    velocities: Tensor

    def combined(self, weights: Tensor) -> "Gradients":
        """Add up all rows but the last by their weights [R - 1], and the last as it is, to one row."""
        # A reward with weight zero was left out and may have a gradient and a loss that are not finite.
        weighed = weights != 0
        row = self.rows[-1].clone()
        for k in weighed.nonzero().flatten().tolist():
            row.add_(self.rows[k], alpha=weights[k].item())
        policy = weights[weighed] @ self.losses[:-2][weighed] + self.losses[-2]
        return Gradients(row[None], torch.stack([policy, self.losses[-1]]), self.velocities)

    def folded(self) -> "Gradients":
        """Add up both halves of every reward's loss (`step.staleness.in_halves`), in place."""
        count = (len(self.rows) - 1) // 2  # K rewards in halves, then the shared loss
        self.rows[:count].add_(self.rows[count : 2 * count])
        self.rows[count].copy_(self.rows[-1])
        losses = torch.cat([self.losses[:count] + self.losses[count : 2 * count], self.losses[2 * count :]])
        return Gradients(self.rows[: count + 1], losses, self.velocities)

    def plus(self, other: "Gradients") -> "Gradients":
        """Add the gradients of other micro-batches."""
        velocities = self.velocities + other.velocities
        return Gradients(self.rows + other.rows, self.losses + other.losses, velocities)


def mixture_gradient(step: Step, parts: list[Chunk], mixture: Coefficients) -> Gradients:
    """Take the gradient of one mixture plus the KL term, R = 1, by one backward pass per micro-batch."""
    parameters = list(step.policy.parameters("trained").values())
    rows, sums = step.layout.new_rows(parameters, per_sample=0, autograd=1), _zero_sums(step, 1)
    mixture = step.weigh(mixture).to(step.policy.device)
    with step.layout.raise_together():
        for forward in step.passes(parts):
            v = forward.v_theta.detach().requires_grad_()
            policy, kl = step.loss(forward, v, forward.terms(v, step.objective.beta), mixture)
            _backward(step, forward, policy + kl, v, parameters, rows.autograd[0])
            sums += _sums(forward, torch.stack([policy, kl]))
        sums = sums.cpu()
    return _sum_over_ranks(step, rows, parameters, sums)


def reward_gradients(
    step: Step, parts: list[Chunk], rewards: Coefficients, shared: Coefficients
) -> Gradients:
    """Take the gradients of K losses and, as a last row, of the shared loss plus the KL term; R = K + 1.

    Args:
        step: policy, data and constants.
        parts: the micro-batches to go through.
        rewards: [K, n], of K losses.
        shared: [n], of the loss that is added once.
    """
    layers, rewards, shared = step.policy.layers(), step.weigh(rewards), step.weigh(shared)
    if layers is None:
        return _one_by_one(step, parts, rewards, shared)
    return _all_at_once(step, parts, rewards, shared, layers)


def _one_by_one(step: Step, parts: list[Chunk], rewards: Coefficients, shared: Coefficients) -> Gradients:
    """Take one backward pass per row, for any parameters.

    GradientRows whose coefficients are zero for the whole step are skipped.
    """
    parameters = list(step.policy.parameters("trained").values())
    count = len(rewards.p) + 1
    rows, sums = step.layout.new_rows(parameters, per_sample=0, autograd=count), _zero_sums(step, count)
    each = rewards.plus(Coefficients(shared.p[None], shared.q[None]))
    with_gradient = (each.p.any(1) | each.q.any(1)).tolist()
    each = each.to(step.policy.device)
    # Compiled code allows one backward pass per forward pass.
    with step.layout.raise_together(), torch.compiler.set_stance("force_eager"):
        for forward in step.passes(parts):
            v = forward.v_theta.detach().requires_grad_()
            terms = forward.terms(v, step.objective.beta)
            needed = [*with_gradient[:-1], with_gradient[-1] or bool(forward.kl)]
            last = max((k for k in range(count) if needed[k]), default=None)
            losses = []
            for k, row in enumerate(rows.autograd):
                policy, kl = step.loss(forward, v, terms, Coefficients(each.p[k], each.q[k]))
                losses.append(policy.detach())
                if needed[k]:
                    loss = policy + kl if k == count - 1 else policy
                    _backward(step, forward, loss, v, parameters, row, retain_graph=k != last)
            sums += _sums(forward, torch.stack([*losses, kl]))
        sums = sums.cpu()
    return _sum_over_ranks(step, rows, parameters, sums)


def _all_at_once(
    step: Step, parts: list[Chunk], rewards: Coefficients, shared: Coefficients, layers: list[nn.Linear]
) -> Gradients:
    """Take one or two backward passes for all rows but the last, and one for the last.

    A loss splits into (p + q) (P + N) / 2 + (p - q) (P - N) / 2. Each half takes one backward pass, whatever
    K is. The even half takes none if its coefficients are zero, as they are with the shared term outside.
    """
    parameters = list(step.policy.parameters("trained").values())
    count = len(rewards.p)
    rows = step.layout.new_rows(parameters, per_sample=count, autograd=1)
    sums, device = _zero_sums(step, count + 1), step.policy.device
    scale = step.objective.clip / step.objective.beta / step.data.samples
    even, odd = scale * (rewards.p + rewards.q), scale * (rewards.p - rewards.q)
    signs = [(sign, c.to(device)) for sign, c in ((1, even), (-1, odd)) if c.any()]
    shares = bool(shared.p.any() or shared.q.any())
    rewards, shared = rewards.to(device), shared.to(device)
    # FSDP frees gathered parameters after a backward pass; a further one through compiled code is untried.
    compiled = step.policy.compiled and not step.layout.sharded and compiled_per_sample.SUPPORTED
    kind = compiled_per_sample.CompiledPerSampleGradients if compiled else PerSampleGradients
    per_sample = kind(layers, rows.per_sample)
    with step.layout.raise_together(), per_sample.watching():
        for forward in step.passes(parts, per_sample.expect):
            images, with_shared = forward.batch.indices, shares or bool(forward.kl)
            v = forward.v_theta.detach().requires_grad_()
            terms = forward.terms(v, step.objective.beta)
            policy, kl = step.loss(forward, v, terms, shared)
            halves = [
                (((terms.positive + sign * terms.negative) / 2).sum(), c[:, images]) for sign, c in signs
            ]
            for remaining, (half, c) in zip(range(len(halves) - 1, -1, -1), halves, strict=True):
                (cotangent,) = torch.autograd.grad(half, v, retain_graph=True)
                scaled, factor = rescale_cotangent(cotangent, step.policy.dtype, step.layout)
                retain = with_shared or remaining > 0
                per_sample.mix(forward.v_theta, scaled, factor * c, retain_graph=retain)
            if with_shared:
                _backward(step, forward, policy + kl, v, parameters, rows.autograd[0])
            p, q = rewards.of(images)
            each = scale * (p @ terms.positive.detach().double() + q @ terms.negative.detach().double())
            sums += _sums(forward, torch.cat([each, torch.stack([policy, kl]).double()]))
        sums = sums.cpu()
    return _sum_over_ranks(step, rows, parameters, sums)


def _zero_sums(step: Step, count: int) -> Tensor:
    """Return zeros for `_sums` on the policy's device, which is waited for once all passes are taken."""
    return torch.zeros(count + 3, dtype=torch.float64, device=step.policy.device)


def _sums(forward: ForwardPass, losses: Tensor) -> Tensor:
    """Return a micro-batch's policy losses and KL term, and the sizes of its velocities."""
    return torch.cat([losses.detach().double(), forward.sizes()])


def _sum_over_ranks(
    step: Step, rows: GradientRows, parameters: list[nn.Parameter], sums: Tensor
) -> Gradients:
    """Sum gradients, losses and velocities over all ranks' samples.

    The losses come first, over gloo, which raises if a rank is gone. NCCL would wait on the GPU for ever for
    that rank's gradients, and a checkpoint's weights, asked of this GPU afterwards, would wait behind them.
    """
    sums = step.layout.ranks.all_reduce(sums)
    return Gradients(step.layout.reduce(rows, parameters), sums[:-2], sums[-2:])


def _backward(
    step: Step,
    forward: ForwardPass,
    loss: Tensor,
    v: Tensor,
    parameters: list[nn.Parameter],
    row: Tensor,
    *,
    retain_graph: bool = False,
) -> None:
    """Add to `row` [n] the gradient of `loss`, a function of the leaf `v` that replaces `forward.v_theta`.

    Parameters without a gradient add nothing.
    """
    (cotangent,) = torch.autograd.grad(loss, v, retain_graph=retain_graph)
    scaled, factor = rescale_cotangent(cotangent, step.policy.dtype, step.layout)
    forward.v_theta.backward(scaled, retain_graph=retain_graph)
    parts = row.split([local(parameter).numel() for parameter in parameters])
    for part, parameter in zip(parts, parameters, strict=True):
        if parameter.grad is not None:
            part.addcmul_(local(parameter.grad).flatten(), factor)
            parameter.grad = None
