"""One step's rollout: prompts to latents with the behaviour policy, scored while the next batch is made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from marble_cli.config.schema import OdeSolver, RolloutConfig, RolloutTimes, RunConfig
from marble_cli.data.prompts import Prompt
from marble_cli.distributed.ranks import Ranks
from marble_cli.policy.base import Adapter, Policy, PromptEmbeddings, RepeatedEmbeddings
from marble_cli.rewards.scorer import PendingScores, Scorer, Scores
from marble_cli.rollout.ode import Velocity, guided, is_guided, make_scheduler, sample, sampling_times
from marble_cli.seeds import noise


@dataclass(frozen=True)
class Samples:
    """Images of one step on this rank: latents `x0` [n, C, H, W], `images` uint8 [n, 3, H, W] and their prompts."""

    x0: Tensor
    images: Tensor
    embeddings: RepeatedEmbeddings
    prompts: list[Prompt]
    pending: list[PendingScores]

    def scores(self, ranks: Ranks) -> Scores:
        """The scores of all ranks' images, in their order, after the rewards that are still at work.

        Raises:
            RewardError: a plugin broke its contract on this rank.
            PeerError: on another; all ranks leave together.
        """
        with ranks.raise_together():
            parts = [part.result() for part in self.pending]

        def all_of(kind: str) -> Tensor:
            own = torch.cat([getattr(part, kind) for part in parts], dim=1)
            return ranks.all_gather(own.double())

        return Scores(parts[0].names, all_of("values"), all_of("applicable").bool(), all_of("failed").bool())


@dataclass(frozen=True)
class Rollout:
    """How samples are made: policy, solver, its `steps`, images a batch, seed, guidance, times.

    A `guidance_scale` of 0 or 1 is none; the two keys after it are explained at `sampler.guided`.
    """

    policy: Policy
    solver: OdeSolver
    steps: int
    batch_size: int
    seed: int
    guidance_scale: float = 1.0
    cfg_normalization: float = 0.0
    cfg_truncation: float = 1.0
    spacing: RolloutTimes = RolloutTimes.solver

    def scheduler(self) -> Any:
        """Return a scheduler of diffusers with the times set."""
        policy = self.policy
        return make_scheduler(
            policy.scheduler_config(),
            self.solver,
            self.steps,
            policy.tokens,
            times=self.spacing,
            even=policy.even_times,
        )

    def times(self) -> Tensor:
        """The solver's times [steps] float32 in (0, 1], falling."""
        return sampling_times(self.scheduler())

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        """Tell the policy which prompts are to come."""
        negatives = [prompt.negative for prompt in prompts] if is_guided(self.guidance_scale) else []
        self.policy.prepare([prompt.text for prompt in prompts], negatives)

    def _encode(self, texts: list[str], *, negative: bool = False) -> RepeatedEmbeddings:
        """Embeddings of `texts`, each distinct one encoded and kept once."""
        row = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        encoded = self.policy.encode(list(row), negative=negative)
        return RepeatedEmbeddings(encoded, torch.tensor([row[text] for text in texts], device=encoded.device))

    def guided(self, positive: Velocity, negative: Velocity) -> Velocity:
        """Return the velocity guided away from the negative prompt's, as the policy's family does."""
        return guided(
            positive, negative, self.policy.guided, self.guidance_scale, self.cfg_normalization, self.cfg_truncation
        )  # fmt: skip

    def _velocity(self, embeddings: PromptEmbeddings, adapter: Adapter) -> Velocity:
        return lambda xt, t: self.policy.velocity(xt, t, embeddings, adapter)

    @torch.no_grad()
    def collect(
        self,
        prompts: Sequence[Prompt],
        indices: Sequence[int],
        *,
        scorer: Scorer,
        adapter: Adapter,
        purpose: str,
        step: int,
        advance: Callable[[int], None],
    ) -> Samples:
        """Make one image for each of `prompts`, and have each batch scored while the next is made.

        Args:
            prompts: the prompt of each image; equal neighbours form a group.
            indices: the image's place in the whole step over all ranks: it alone picks its noise.
            scorer: scores each batch in the background.
            adapter: the policy that draws.
            purpose: what the noise is for, part of its seed.
            step: part of the noise's seed.
            advance: told how many images each batch made.
        """
        embeddings = self._encode([prompt.text for prompt in prompts])
        away = None
        if is_guided(self.guidance_scale):
            away = self._encode([prompt.negative for prompt in prompts], negative=True)
        latents, pictures, pending = [], [], list[PendingScores]()
        for start in range(0, len(prompts), self.batch_size):
            part = slice(start, start + self.batch_size)
            begin = noise(self.seed, purpose, step, list(indices[part]), self.policy.latent_shape)
            velocity = self._velocity(embeddings[part], adapter)
            if away is not None:
                velocity = self.guided(velocity, self._velocity(away[part], adapter))
            x0 = sample(velocity, begin.to(self.policy.device), self.scheduler())
            images = self.policy.decode(x0)
            chosen = prompts[part]
            pending.append(
                scorer.submit(
                    images, [p.text for p in chosen], [p.metadata for p in chosen], [p.source for p in chosen]
                )
            )
            latents.append(x0)
            pictures.append(images)
            advance(len(images))
        return Samples(torch.cat(latents), torch.cat(pictures), embeddings, list(prompts), pending)


def judged_as(config: RunConfig) -> RolloutConfig:
    """Return how evaluations draw: as the rollout, but for what `evaluation` sets."""
    own = {name: value for name, value in vars(config.evaluation).items() if value is not None}
    return replace(config.rollout, **own)


def training_rollout(config: RunConfig, policy: Policy) -> Rollout:
    """Return what makes the images that are trained on."""
    return _rollout(config.rollout, config.trainer.seed, policy)


def evaluation_rollout(config: RunConfig, policy: Policy) -> Rollout:
    """Return what makes the images that are judged or looked at."""
    return _rollout(judged_as(config), config.trainer.seed, policy)


def _rollout(settings: RolloutConfig, seed: int, policy: Policy) -> Rollout:
    return Rollout(
        policy, settings.solver, settings.steps, settings.batch_size, seed, settings.guidance_scale,
        settings.cfg_normalization, settings.cfg_truncation, settings.times,
    )  # fmt: skip
