"""Runs whose evaluation of step 3 shows reward hacking until the KL coefficient is 0.5; or such a process."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from marble_cli.evaluate.score import Evaluation
from marble_cli.evaluate.verdict import Verdict
from marble_cli.run.evaluations import Evaluations

HACKED = "other (-2) fell since the start while colorfulness (+1) rose: a sign of reward hacking"
# Every step is better than the ones before, the hacked one included.
SETTINGS = (
    "trainer.steps=4",
    "trainer.eval_every=1",
    "trainer.checkpoint_every=9",
    "trainer.eval_prompts=1",
    "trainer.keep_last=9",
    "rollout.steps=2",
    "rollout.batch_size=6",
    "trainer.rollback.times=2",
    "trainer.rollback.kl_factor=10",
    "trainer.rollback.kl_least=0.05",
    "algorithm.behaviour.rate=0.3",
    "optimizer.lr=0.01",
    "balance.refresh_every=3",
    "+eval_rewards.other={plugin: compressibility}",
)
score = Evaluations.score


def hacked_score(self: Evaluations, advance: Callable[[int], None]) -> tuple[Evaluation, Verdict]:
    evaluation, verdict = score(self, advance)
    step = self.progress.step
    metrics: dict[str, Any] = {**verdict.metrics, "eval/composite": step / 10}
    hacking = HACKED if step == 3 and self.kl_coef < 0.5 else None
    return evaluation, replace(verdict, metrics=metrics, hacking=hacking)


if __name__ == "__main__":
    from marble_cli.cli.app import main

    Evaluations.score = hacked_score  # type: ignore[method-assign]
    sys.exit(main())
