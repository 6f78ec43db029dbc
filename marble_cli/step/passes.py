"""Run one step's forward passes over its micro-batches, and form losses from them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from marble_cli.config.algorithm import guidance_of_reference
from marble_cli.config.enums import KlReference
from marble_cli.config.schema import RunConfig
from marble_cli.distributed.layout import Layout
from marble_cli.objective.coefficients import Coefficients
from marble_cli.objective.nft import NftTerms, kl_term, mixed_loss, nft_terms
from marble_cli.policy.base import Policy
from marble_cli.rollout.guidance import Guidance
from marble_cli.step.batches import Chunk, NoisedBatch, TrainingSet, noised_batches


@dataclass(frozen=True)
class Objective:
    """Constants of the loss: beta, A_max, KL coefficient, the run's seed and the images per micro-batch.

    One of `kl_every` micro-batches has a KL term. Its reference is the frozen model, under `guidance` if
    there is any.
    """

    beta: float
    clip: float
    kl_coef: float
    seed: int
    micro_batch_size: int
    kl_every: int = 1
    guidance: Guidance | None = None


def make_objective(config: RunConfig) -> Objective:
    """Return the constants of a run's loss, with the KL coefficient of its first step."""
    algorithm, trainer, rollout = config.algorithm, config.trainer, config.rollout
    guidance = None
    if algorithm.kl_reference is KlReference.guided:
        scale = guidance_of_reference(algorithm, rollout.guidance_scale)
        guidance = Guidance(scale, rollout.cfg_normalization, rollout.cfg_truncation)
    return Objective(
        algorithm.beta,
        algorithm.advantage.clip,
        algorithm.kl_coef,
        trainer.seed,
        trainer.micro_batch_size,
        algorithm.kl_every,
        guidance,
    )


@dataclass(frozen=True)
class ForwardPass:
    """A micro-batch and its velocities [B, C, H, W]: `v_theta` has a graph, the others have none.

    `kl` is the coefficient of its KL term. Where it is zero, the reference `v_ref` is None.
    """

    batch: NoisedBatch
    v_theta: Tensor
    v_old: Tensor
    v_ref: Tensor | None
    kl: float

    def terms(self, v: Tensor, beta: float) -> NftTerms:
        """Return the halves of the loss at trained velocities `v`."""
        batch = self.batch
        terms = nft_terms(batch.x0, batch.xt, batch.t, v, self.v_old, beta=beta)
        return NftTerms(batch.without_padding(terms.positive), batch.without_padding(terms.negative))

    def sizes(self) -> Tensor:
        """Return [2] float64, sums over the samples of mean |v_theta - v_old| and of mean |v_old|."""
        gaps = torch.stack([self.v_theta.detach() - self.v_old, self.v_old]).abs().flatten(2).mean(2)
        return self.batch.without_padding(gaps).sum(1).double()


@dataclass(frozen=True)
class Step:
    """Inputs of one step's gradients on this rank.

    Attributes:
        policy: whose trained weights the gradients are of.
        layout: how ranks hold and sum gradients.
        data: this rank's images.
        objective: constants of the loss.
        number: of the step; it enters the noise.
        advance: called with the number of samples after every micro-batch.
    """

    policy: Policy
    layout: Layout
    data: TrainingSet
    objective: Objective
    number: int
    advance: Callable[[int], None]

    def weigh(self, losses: Coefficients) -> Coefficients:
        """Weigh the losses' coefficients, if some of the step's images are left out of training."""
        return losses if self.data.weights is None else self.data.weights.weigh(losses)

    def passes(
        self, parts: list[Chunk], expect: Callable[[int], None] = lambda count: None
    ) -> Iterator[ForwardPass]:
        """Yield forward passes over the micro-batches `parts`; the frozen model runs only for a KL term.

        `expect` is called with the number of samples before every forward pass.
        """
        policy = self.policy
        for batch in noised_batches(self.data, parts, self.objective.seed, self.number):
            at = (batch.xt, batch.t, batch.embeddings)
            kl = self.objective.kl_coef * batch.kl_weight
            expect(len(batch.x0))
            with torch.no_grad():
                v_old = policy.velocity(*at, "behaviour")
                v_ref = self.reference(batch) if kl else None
            yield ForwardPass(batch, policy.velocity(*at, "trained"), v_old, v_ref, kl)
            self.advance(len(batch.indices))

    def reference(self, batch: NoisedBatch) -> Tensor:
        """Return the velocity [B, C, H, W] that the KL term pulls towards.

        With guidance, every rank takes a second forward pass, also where truncation ends it: with shards all
        ranks have to take equally many.
        """
        policy, guidance = self.policy, self.objective.guidance
        v = policy.velocity(batch.xt, batch.t, batch.embeddings, None)
        if guidance is None:
            return v
        assert batch.negatives is not None
        negative = policy.velocity(batch.xt, batch.t, batch.negatives, None)
        return guidance.combine(v, negative, batch.t, policy.guided)

    def loss(
        self, forward: ForwardPass, v: Tensor, terms: NftTerms, mixture: Coefficients
    ) -> tuple[Tensor, Tensor]:
        """Return this micro-batch's part of the step's policy loss of one mixture, and of its KL term."""
        objective, count = self.objective, self.data.samples
        p, q = mixture.of(forward.batch.indices)
        policy = mixed_loss(terms, p, q, clip=objective.clip, beta=objective.beta, count=count)
        if forward.v_ref is None:
            return policy, policy.new_zeros(())
        kl, weights = forward.batch.without_padding(kl_term(v, forward.v_ref)), forward.batch.kl_weights
        return policy, forward.kl * (kl if weights is None else kl * weights).sum() / count
