"""Draw and score the images of one step: prompts to latents; a batch is scored while the next is drawn."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from marble_cli.config.evaluation import EvaluationSettings
from marble_cli.config.schema import RolloutConfig
from marble_cli.data.conditions import Condition
from marble_cli.data.prompts import Prompt
from marble_cli.pictures import seen_sizes
from marble_cli.policy.base import Adapter, Policy, PromptEmbeddings, RepeatedEmbeddings
from marble_cli.policy.diffusers_types import Scheduler
from marble_cli.rewards.scorer import PendingScores, Scorer
from marble_cli.rollout.guidance import Guidance, Velocity
from marble_cli.rollout.ode import make_scheduler, sample, sampling_times
from marble_cli.rollout.samples import Samples
from marble_cli.seeds import noise
from marble_cli.videos import middle_frame

Shape = tuple[int | str, Hashable]  # of images: their size, and the layout of several pictures


@dataclass(frozen=True)
class PromptVectors:
    """Embeddings of the prompts of n images and, where needed, of their negative prompts."""

    positive: RepeatedEmbeddings
    negative: RepeatedEmbeddings | None


@dataclass(frozen=True)
class Rollout:
    """Draw images with a policy, as `settings` say.

    Attributes:
        policy: draws.
        settings: of the images.
        seed: of the noise.
        negatives: whether `collect` returns the embeddings of negative prompts, also without guidance.
    """

    policy: Policy
    settings: RolloutConfig
    seed: int
    negatives: bool = False

    @property
    def guidance(self) -> Guidance:
        settings = self.settings
        return Guidance(settings.guidance_scale, settings.cfg_normalization, settings.cfg_truncation)

    @property
    def needs_negatives(self) -> bool:
        return self.negatives or self.guidance.acts

    def scheduler(self) -> Scheduler:
        """Make a scheduler with its times set."""
        policy, settings = self.policy, self.settings
        return make_scheduler(
            policy.scheduler_config(),
            settings.solver,
            settings.steps,
            policy.tokens,
            times=settings.times,
            even=policy.even_times,
        )

    def times(self) -> Tensor:
        """Return the solver's times [steps] float32 in (0, 1], falling."""
        return sampling_times(self.scheduler())

    def sizes(self, prompts: Sequence[Prompt]) -> list[int | str]:
        """Return the size of each prompt's images: that of the policy if the prompt has none.

        Raises:
            DataError: a picture, whose shape decides, cannot be read.
        """
        return [prompt.drawn_at(self.policy.resolution) for prompt in prompts]

    def shapes(self, prompts: Sequence[Prompt]) -> list[Shape]:
        """Return what each prompt shares with those that are drawn with it: size, and layout of pictures.

        Raises:
            DataError: a picture, whose shape decides, cannot be read.
        """
        sizes = self.sizes(prompts)
        policies = {size: self.policy.resized(size) for size in dict.fromkeys(sizes)}
        return [
            (size, policies[size].layout(prompt.images) if len(prompt.images) > 1 else None)
            for size, prompt in zip(sizes, prompts, strict=True)
        ]

    def by_shape(self, prompts: Sequence[Prompt]) -> list[tuple["Rollout", list[int]]]:
        """Return how the images of each shape are drawn, and the places of their prompts."""
        places: dict[Shape, list[int]] = {}
        for place, shape in enumerate(self.shapes(prompts)):
            places.setdefault(shape, []).append(place)
        return [(replace(self, policy=self.policy.resized(size)), rows) for (size, _), rows in places.items()]

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        """Have the policy encode the prompts of later steps, if it caches embeddings."""
        for rollout, places in self.by_shape(prompts):
            rollout._prepare([prompts[i] for i in places])

    def _prepare(self, prompts: Sequence[Prompt]) -> None:
        negatives = [prompt.negative for prompt in prompts] if self.needs_negatives else []
        images = _given(prompt.images for prompt in prompts)
        self.policy.prepare([prompt.text for prompt in prompts], negatives, images)

    def encode(self, prompts: Sequence[Prompt]) -> PromptVectors:
        """Encode the prompts and, where needed, their negative prompts."""
        positive = self._encode([(prompt.text, prompt.images) for prompt in prompts])
        if not self.needs_negatives:
            return PromptVectors(positive, None)
        negatives = [(prompt.negative, prompt.images) for prompt in prompts]
        return PromptVectors(positive, self._encode(negatives, negative=True))

    def _encode(
        self, rows: list[tuple[str, tuple[Condition, ...]]], *, negative: bool = False
    ) -> RepeatedEmbeddings:
        """Encode each distinct text, or text and pictures, once."""
        keys = [(text, *(image.digest for image in images)) for text, images in rows]
        distinct = dict(zip(keys, rows, strict=True))
        place = {key: index for index, key in enumerate(distinct)}
        texts, images = zip(*distinct.values(), strict=True)
        encoded = self.policy.encode(texts, _given(images), negative=negative)
        return RepeatedEmbeddings(encoded.each(), torch.tensor([place[key] for key in keys]))

    @torch.no_grad()
    def draw(self, prompts: PromptVectors, images: slice, start: Tensor, adapter: Adapter) -> Tensor:
        """Draw one batch: integrate from noise to x0 [B, C, H, W].

        Args:
            prompts: the prompts of all images.
            images: the batch, as a slice of them.
            start: noise [B, C, H, W] float32.
            adapter: the weights that draw.
        """
        velocity = self._velocity(prompts.positive[images], adapter)
        if self.guidance.acts:
            assert prompts.negative is not None
            negative = self._velocity(prompts.negative[images], adapter)
            velocity = self.guidance.guide(velocity, negative, self.policy.guided)
        return sample(velocity, start.to(self.policy.device), self.scheduler())

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
        """Draw one image per entry of `prompts`, those of one shape after the other.

        Each batch is of one shape, and is scored while the next is drawn.

        Args:
            prompts: the prompt of each image; equal neighbours form a group.
            indices: each image's index in the whole step over all ranks. With `purpose` and `step` it alone
                decides the image's noise.
            scorer: scores each batch in the background.
            adapter: the weights that draw.
            purpose: what the images are for; part of the noise's seed.
            step: part of the noise's seed.
            advance: called with the number of images after each batch.
        """
        x0, images, order = list[Tensor](), list[Tensor](), list[int]()
        vectors, pending = list[PromptVectors](), list[PendingScores]()
        for rollout, places in self.by_shape(prompts):
            vectors.append(rollout.encode([prompts[i] for i in places]))
            for first in range(0, len(places), self.settings.batch_size):
                batch = places[first : first + self.settings.batch_size]
                shape = rollout.policy.latent_shape
                start = noise(self.seed, purpose, step, [indices[i] for i in batch], shape)
                latents = rollout.draw(vectors[-1], slice(first, first + len(batch)), start, adapter)
                decoded, finite = rollout.policy.decode(latents)
                pending.append(submit(scorer, [prompts[i] for i in batch], decoded, finite))
                x0 += latents
                images += decoded
                order += batch
                advance(len(batch))
        drawn = torch.tensor(order)
        rows = drawn.argsort()
        negatives = [vector.negative for vector in vectors if vector.negative is not None]
        return Samples(
            [x0[row] for row in rows.tolist()],
            [images[row] for row in rows.tolist()],
            RepeatedEmbeddings.joined([vector.positive for vector in vectors]).chosen(rows),
            list(prompts),
            pending,
            drawn,
            RepeatedEmbeddings.joined(negatives).chosen(rows) if self.negatives else None,
        )


def submit(scorer: Scorer, prompts: Sequence[Prompt], images: Tensor, finite: Tensor) -> PendingScores:
    """Begin to score B images [B, 3, H, W] or videos [B, F, 3, H, W], uint8, of as many prompts.

    They come with the pictures that they start from. Those of which `finite` [B] is false get no score.

    Raises:
        DataError: such a picture can no longer be read.
    """
    frames = images if images.ndim == 5 else None
    images = images if frames is None else middle_frame(frames)
    return scorer.submit(
        images,
        [prompt.text for prompt in prompts],
        [prompt.metadata for prompt in prompts],
        [prompt.source for prompt in prompts],
        frames=frames,
        references=read_references(prompts, images),
        finite=finite,
    )


def _given(images: Iterable[tuple[Condition, ...]]) -> list[tuple[Condition, ...]] | None:
    """Return the pictures of prompts, of which all have some or none; None if none has."""
    found = list(images)
    return found if any(found) else None


def read_references(prompts: Sequence[Prompt], images: Tensor) -> list[list[Tensor]] | None:
    """Return the pictures that B prompts start from, as large as models see them beside their images.

    Args:
        prompts: of the images.
        images: uint8 [B, 3, H, W].

    Raises:
        DataError: a picture can no longer be read.
    """
    if (found := _given(prompt.images for prompt in prompts)) is None:
        return None
    height, width = images.shape[2:]
    pixels: dict[tuple[str, tuple[int, int]], Tensor] = {}
    rows = []
    for pictures in found:
        sized = list(zip(pictures, seen_sizes(pictures, width, height), strict=True))
        for picture, size in sized:
            if (picture.digest, size) not in pixels:
                pixels[picture.digest, size] = picture.pixels(*size)
        rows.append([pixels[picture.digest, size] for picture, size in sized])
    return rows


def evaluation_rollout(policy: Policy, rollout: RolloutConfig, evaluation: EvaluationSettings) -> Rollout:
    """Return how evaluations draw images with `policy`; batches hold whole groups where they can.

    Raises:
        RequestError: `evaluation.resolution` does not fit the model.
    """
    settings = replace(
        rollout,
        steps=evaluation.steps,
        solver=evaluation.solver,
        times=evaluation.times,
        guidance_scale=evaluation.guidance_scale,
        batch_size=whole_groups(evaluation.batch_size, evaluation.images_per_prompt),
    )
    return Rollout(policy.resized(evaluation.resolution), settings, evaluation.seed)


def whole_groups(batch_size: int, group_size: int) -> int:
    """Return the largest batch of whole groups, at most `batch_size`; that itself if it is below a group."""
    return batch_size - batch_size % group_size or batch_size
