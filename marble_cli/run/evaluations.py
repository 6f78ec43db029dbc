"""Evaluate a run on held-out prompts: when to evaluate, the scores, and whether they are the best so far."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

from marble_cli.config.trainer import TrainerConfig
from marble_cli.evaluate.score import Evaluation, Evaluator
from marble_cli.evaluate.verdict import Verdict, base_scores, judge
from marble_cli.policy.base import Policy
from marble_cli.run.rollback import respond
from marble_cli.run.state import Progress

log = logging.getLogger("marble.run")


def is_due(settings: TrainerConfig, progress: Progress) -> bool:
    """Tell whether the last finished step is due for an evaluation and has none yet."""
    step, every = progress.step, settings.eval_every
    due = every and (not progress.base_scores or step % every == 0 or step == settings.steps)
    return bool(due) and progress.evaluated < step


@dataclass
class Evaluations:
    """The evaluations of a run.

    Attributes:
        settings: the steps that are evaluated, and the metric that chooses the best.
        policy: the policy whose moving average is evaluated.
        evaluator: draws the images of the held-out prompts and scores the trained and the watched rewards.
        trained: the names of the trained rewards.
        guards: the names of the guards.
        watched: the names of the watched rewards.
        kl_coef: the KL coefficient that the run trains with.
        progress: the state after the last finished step.
    """

    settings: TrainerConfig
    policy: Policy
    evaluator: Evaluator
    trained: list[str]
    guards: list[str]
    watched: list[str]
    kl_coef: float
    progress: Progress

    def are_due(self) -> bool:
        """Tell whether the last finished step is due for an evaluation and has none yet."""
        return is_due(self.settings, self.progress)

    def score(self, advance: Callable[[int], None]) -> tuple[Evaluation, Verdict]:
        """Score the moving average, and compare it with the first evaluation.

        Args:
            advance: called with the number of images that each batch made.
        """
        with self.policy.swapped(self.progress.ema):
            evaluation = self.evaluator.score("trained", advance)
        base = self.progress.base_scores or base_scores(evaluation)
        return evaluation, judge(evaluation, base, self.trained, self.watched, self.guards)

    def finish(self, evaluation: Evaluation, verdict: Verdict) -> bool:
        """Mark the last finished step as evaluated; tell whether it is the best so far in `trainer.best`.

        The first evaluation provides the base scores of later ones and the value that they have to exceed; it
        is never the best itself.

        Raises:
            HackingError: it shows reward hacking, and the run has to stop; on all ranks.
            RollBack: it shows reward hacking, and the run has to go back; on all ranks.
        """
        progress, key, first = self.progress, self.settings.best, not self.progress.base_scores
        progress.base_scores = progress.base_scores or base_scores(evaluation)
        progress.evaluated = progress.step
        if verdict.hacking:
            log.warning("step %d: %s", progress.step, verdict.hacking)
            respond(verdict.hacking, self.settings, progress, self.kl_coef)
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
