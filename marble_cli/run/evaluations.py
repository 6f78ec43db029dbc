"""Evaluate a run on held-out prompts: when to evaluate, the scores, and whether they are the best so far."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

from marble_cli.config.schema import TrainerConfig
from marble_cli.data.prompts import Prompt
from marble_cli.distributed.ranks import Ranks
from marble_cli.evaluate.score import Evaluation, score_policy
from marble_cli.evaluate.verdict import Verdict, base_scores, judge
from marble_cli.policy.base import Policy
from marble_cli.rewards.scorer import Scorer
from marble_cli.rollout.collect import Rollout
from marble_cli.run.state import Progress

log = logging.getLogger("marble.run")


@dataclass
class Evaluations:
    """The evaluations of a run.

    Attributes:
        settings: the steps that are evaluated, and the metric that chooses the best.
        policy: the policy whose moving average is evaluated.
        scorer: scores the trained and the watched rewards.
        rollout: makes the images.
        held_out: the prompts.
        trained: the names of the trained rewards.
        watched: the names of the watched rewards.
        ranks: the ranks of the run.
        progress: the state after the last finished step.
    """

    settings: TrainerConfig
    policy: Policy
    scorer: Scorer
    rollout: Rollout
    held_out: list[Prompt]
    trained: list[str]
    watched: list[str]
    ranks: Ranks
    progress: Progress

    @property
    def own_prompts(self) -> list[Prompt]:
        """The held-out prompts of this rank."""
        return [self.held_out[i] for i in self.ranks.padded_rank_indices(len(self.held_out))]

    def encode_prompts(self) -> None:
        """Encode the held-out prompts of this rank."""
        self.rollout.prepare(self.own_prompts)

    def are_due(self) -> bool:
        """Tell whether the last finished step is due for an evaluation and has none yet."""
        step, every = self.progress.step, self.settings.eval_every
        first = not self.progress.base_scores
        due = every and (first or step % every == 0 or step == self.settings.steps)
        return bool(due) and self.progress.evaluated < step

    def score(self, advance: Callable[[int], None]) -> tuple[Evaluation, Verdict]:
        """Score the moving average; the first evaluation provides the base scores of later ones.

        Args:
            advance: called with the number of images that each batch made.
        """
        with self.policy.swapped(self.progress.ema):
            evaluation = score_policy(
                self.rollout, "trained", self.held_out, self.scorer, self.ranks, advance
            )
        if not self.progress.base_scores:
            self.progress.base_scores = base_scores(evaluation)
        return evaluation, judge(evaluation, self.progress.base_scores, self.trained, self.watched)

    def finish(self, verdict: Verdict, first: bool) -> bool:
        """Mark the last finished step as evaluated; tell whether it is the best so far in `trainer.best`.

        The `first` evaluation is the value that later ones have to exceed; it is never the best itself.
        """
        progress, key = self.progress, self.settings.best
        progress.evaluated = progress.step
        for warning in verdict.warnings:
            log.warning("step %d: %s", progress.step, warning)
        value = verdict.metrics.get(key, math.nan)
        if not math.isfinite(value):
            log.warning("step %d: the evaluation has no %s; the best stays", progress.step, key)
            return False
        if progress.best is not None and value <= progress.best:
            return False
        progress.best = value
        if not first:
            progress.best_step = progress.step
        return not first
