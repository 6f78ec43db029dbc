"""Draw and score a policy's images of held-out prompts, with noise that depends only on an image's index."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from marble_cli.config.evaluation import resolve_evaluation
from marble_cli.config.resolution import read_resolution
from marble_cli.config.schema import RunConfig
from marble_cli.data.conditions import montage
from marble_cli.data.prompts import Prompt
from marble_cli.distributed.layout import Layout, Replicated
from marble_cli.distributed.ranks import Ranks
from marble_cli.distributed.shares import Shares, share
from marble_cli.evaluate.diversity import diversities
from marble_cli.policy.base import Adapter, Policy
from marble_cli.rewards.scorer import Scorer, Scores, in_order
from marble_cli.rollout.collect import Rollout, evaluation_rollout, read_references
from marble_cli.rollout.samples import Samples
from marble_cli.videos import strip

# Largest number of images of an evaluation that are kept to be looked at.
SHOWN = 48


def shown(count: int) -> list[int]:
    """Return the indices, among `count` prompts, whose first images are kept to be looked at."""
    return list(range(0, count, max(1, -(-count // SHOWN))))


@dataclass(frozen=True)
class Evaluation:
    """Scores [K, n] of `images_per_prompt` images per prompt, prompt after prompt.

    `images`, m of uint8 [3, H, W], are the first ones of the prompts at the `shown` indices. `diversity`,
    float64 [prompts], is set if there are several images per prompt. Of videos, `images` are strips of
    frames, and `videos` all frames of each, uint8 [F, 3, H, W], which are shown at `fps`.
    """

    prompts: list[Prompt]
    images: list[Tensor]
    scores: Scores
    images_per_prompt: int = 1
    diversity: Tensor | None = None
    videos: list[Tensor] = field(default_factory=list)
    fps: int | None = None

    @property
    def captions(self) -> list[str]:
        """Prompts of `images`."""
        return [self.prompts[i].text for i in shown(len(self.prompts))]

    @property
    def conditions(self) -> list[Tensor]:
        """What `images` were edited from, of their sizes: a picture or a sheet of several.

        None if prompts have no pictures.
        """
        prompts = [self.prompts[i] for i in shown(len(self.prompts))]
        sheets = []
        for prompt, image in zip(prompts, self.images, strict=True):
            for pictures in read_references([prompt], image[None]) or ():
                sheets.append(montage(pictures, image.shape[2], image.shape[1]))
        return sheets

    @property
    def prompt_indices(self) -> np.ndarray:
        """The index of each image's prompt, int [n]."""
        return np.repeat(np.arange(len(self.prompts)), self.images_per_prompt)

    @property
    def sources(self) -> list[str]:
        """The source of each image's prompt."""
        return [prompt.source for prompt in self.prompts for _ in range(self.images_per_prompt)]

    def summary(self) -> dict[str, tuple[float, float, int]]:
        """Return mean, standard deviation and number of scored images of each reward that scored any."""
        result = {}
        for k, name in enumerate(self.scores.names):
            values = self.scores.values[k][self.scores.applicable[k]]
            if len(values):
                result[name] = (values.mean().item(), values.std(correction=0).item(), len(values))
        return result


@dataclass(frozen=True)
class Evaluator:
    """Draws and scores the images of `prompts`, each rank those of its own prompts.

    Both a run and `marble eval` evaluate through it, so that equal settings give equal scores.
    """

    rollout: Rollout
    scorer: Scorer
    prompts: list[Prompt]
    images_per_prompt: int = 1
    layout: Layout = field(default_factory=lambda: Replicated(Ranks.alone()))

    @property
    def ranks(self) -> Ranks:
        return self.layout.ranks

    @cached_property
    def shares(self) -> Shares:
        """Which prompts each rank draws the images of."""
        return share(self.rollout.shapes(self.prompts), self.ranks.world)

    @property
    def own(self) -> list[int]:
        """The indices of this rank's prompts."""
        return self.shares.own(self.ranks.rank)

    @property
    def own_images(self) -> int:
        """The number of images that this rank draws."""
        return len(self.own) * self.images_per_prompt

    def encode_prompts(self) -> None:
        """Encode the prompts of this rank."""
        self.rollout.prepare([self.prompts[i] for i in self.own])

    def score(self, adapter: Adapter, advance: Callable[[int], None] = lambda count: None) -> Evaluation:
        """Draw and score the images with `adapter`.

        Args:
            adapter: the weights that draw.
            advance: called with the number of images that each batch made.

        Raises:
            RewardError: a reward broke its contract, or failed on too many images.
        """
        size, places = self.images_per_prompt, self.shares.everywhere.flatten()
        with self.layout.raise_together():
            samples = self.draw(self.own, adapter, advance)
        images = places[:, None] * size + torch.arange(size)
        scores = samples.scores(self.ranks).of_images(images.where(places[:, None] >= 0, -1).flatten())
        self.scorer.check(scores)
        diversity = None
        if size > 1:
            diversity = self.ranks.all_gather(diversities(samples.x0, size).cpu())[in_order(places)]
        pictures, fps = self._gather_shown(samples.images), self.rollout.policy.fps
        if fps is None:
            return Evaluation(self.prompts, pictures, scores, size, diversity)
        strips = [strip(frames) for frames in pictures]
        return Evaluation(self.prompts, strips, scores, size, diversity, pictures, fps)

    def draw(
        self,
        places: Sequence[int],
        adapter: Adapter,
        advance: Callable[[int], None] = lambda count: None,
    ) -> Samples:
        """Draw the images of the prompts at `places`, and begin to score them; other arguments as `score`."""
        size = self.images_per_prompt
        return self.rollout.collect(
            [self.prompts[i] for i in places for _ in range(size)],
            [i * size + place for i in places for place in range(size)],
            scorer=self.scorer,
            adapter=adapter,
            purpose="evaluate",
            step=0,
            advance=advance,
        )

    def _gather_shown(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Gather the first images of the `shown` prompts from all ranks; `images` are those of this rank."""
        indices = shown(len(self.prompts))
        sizes = map(read_resolution, self.rollout.sizes([self.prompts[i] for i in indices]))
        frames = self.rollout.policy.frames
        first = (3,) if frames is None else (frames, 3)
        shapes = [(*first, size.height, size.width) for size in sizes]
        places = {prompt: row for row, prompt in enumerate(self.shares.everywhere[self.ranks.rank].tolist())}
        # Each rank knows its own ones; the sum over ranks has all.
        own = [
            images[places[i] * self.images_per_prompt]
            if i in places
            else torch.zeros(shape, dtype=torch.uint8)
            for i, shape in zip(indices, shapes, strict=True)
        ]
        device = self.rollout.policy.device
        return [self.ranks.all_reduce(image.to(device)).cpu() for image in own]


def make_evaluator(
    config: RunConfig,
    policy: Policy,
    scorer: Scorer,
    prompts: list[Prompt],
    layout: Layout | None = None,
) -> Evaluator:
    """Make the evaluator of a run.

    Args:
        config: the configuration of the run.
        policy: the policy whose images are judged.
        scorer: scores them.
        prompts: the held-out prompts.
        layout: of the ranks that share the prompts; this process alone if None.

    Raises:
        RequestError: `evaluation.resolution` does not fit the model.
    """
    settings = resolve_evaluation(config)
    rollout = evaluation_rollout(policy, config.rollout, settings)
    alone = Replicated(Ranks.alone())
    return Evaluator(rollout, scorer, prompts, settings.images_per_prompt, layout or alone)
