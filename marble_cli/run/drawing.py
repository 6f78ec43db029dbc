"""Draw and score the images of a step; with `rollout.dead_groups=redraw`, replace dead groups."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from marble_cli.config.enums import DeadGroups
from marble_cli.data.prompts import Prompt
from marble_cli.data.schedule import PromptSampler
from marble_cli.distributed.layout import Layout
from marble_cli.distributed.shares import Shares, share
from marble_cli.objective.group_signal import group_signal
from marble_cli.rewards.scorer import Scorer, Scores
from marble_cli.rollout.collect import Rollout
from marble_cli.run.drawn import Drawn
from marble_cli.run.shortage import bounded

REDRAWS = 3  # attempts per step, each on the groups that are still dead
# Remedies when the device runs out of memory.
SMALLER_ENCODERS = "Free the device or take one with more memory"
SMALLER_ROLLOUT = "Lower rollout.batch_size"


class StageView(Protocol):
    """Show how far a stage of a step is."""

    def stage(self, name: str, total: int) -> None: ...
    def advance(self, count: int) -> None: ...


@dataclass(frozen=True)
class Drawing:
    """Draw the images of a step on all ranks.

    Attributes:
        sampler: draws the prompts.
        rollout: makes the images.
        scorer: scores the trained rewards, and others if a gate needs them.
        trained: the names of the trained rewards and the guards.
        layout: its ranks share the images.
        view: shows the progress.
        together: neighbouring images that stay on one rank.
    """

    sampler: PromptSampler
    rollout: Rollout
    scorer: Scorer
    trained: list[str]
    layout: Layout
    view: StageView
    together: int

    def draw(self, step: int) -> Drawn:
        """Draw the images of a step, and replace dead groups if the configuration says so.

        Results depend neither on the number of ranks nor on where a run was resumed.

        Raises:
            RewardError: a plugin broke its contract, or failed too often.
        """
        prompts = self.sampler.step(step)
        drawn = self._collect(step, "rollout", prompts, torch.arange(len(prompts)))
        self.scorer.check(drawn.scores)
        if self.rollout.settings.dead_groups is not DeadGroups.redraw:
            return drawn
        used = {prompt.key for prompt in prompts}
        for attempt in range(1, REDRAWS + 1):
            dead = _equal_groups(drawn.scores.only(self.trained), drawn.groups)
            found = self.sampler.others(step, attempt, [prompts[i] for i in dead], used)
            others = {i: prompt for i, prompt in zip(dead, found, strict=True) if prompt is not None}
            if not others:
                break
            used |= {prompt.key for prompt in others.values()}
            with bounded("while prompts were encoded", SMALLER_ENCODERS), self.layout.ranks.raise_together():
                self.rollout.prepare(list(others.values()))
            groups = torch.tensor(list(others))
            other = self._collect(step, f"redraw{attempt}", list(others.values()), groups)
            drawn = drawn.replaced_by(_images(groups, self.rollout.settings.group_size), other)
        if drawn.redrawn:
            self.scorer.check(drawn.scores)
        return drawn

    def _collect(self, step: int, purpose: str, prompts: Sequence[Prompt], groups: Tensor) -> Drawn:
        """Draw and score the images of some groups of the step.

        Args:
            step: the optimizer step.
            purpose: part of the noise's seed.
            prompts: one per group.
            groups: [G] int64, the places of the groups in the step, which decide the noise.
        """
        ranks, size, began = self.layout.ranks, self.rollout.settings.group_size, time.perf_counter()
        images = _images(groups, size)
        with bounded(f"in the rollout of step {step}", SMALLER_ROLLOUT), self.layout.raise_together():
            shares = share_images(self.rollout, prompts, ranks.world, self.together)
            own = shares.own(ranks.rank)
            self.view.stage("rollout", len(own))
            samples = self.rollout.collect(
                [prompts[i // size] for i in own],
                images[own].tolist(),
                scorer=self.scorer,
                adapter="behaviour",
                purpose=purpose,
                step=step,
                advance=self.view.advance,
            )
        done = time.perf_counter()
        scores = samples.scores(ranks).of_images(shares.everywhere.flatten())
        return Drawn(
            samples,
            scores,
            images // size,
            shares.everywhere,
            redrawn=0,
            failed=scores.failed.sum(1),
            drawing=done - began,
            waiting=time.perf_counter() - done,
        )


def share_images(rollout: Rollout, prompts: Sequence[Prompt], world: int, together: int) -> Shares:
    """Share the images of these prompts among ranks; `together` neighbouring ones stay on one rank.

    Raises:
        DataError: a picture, whose shape decides, cannot be read.
    """
    each = rollout.settings.group_size
    return share([shape for shape in rollout.shapes(prompts) for _ in range(each)], world, together)


def _images(groups: Tensor, size: int) -> Tensor:
    """Return [G * size] int64, the images of these groups."""
    return (groups[:, None] * size + torch.arange(size)).flatten()


def _equal_groups(scores: Scores, groups: Tensor) -> list[int]:
    """Return the dead groups that a reward applies to.

    Prompts of their sources may have signal. Where no reward applies, other prompts would seldom differ.
    """
    signal = group_signal(scores.values, scores.applicable, groups)
    return [int(i) for i in (signal.dead & signal.applies.any(0)).nonzero()]
