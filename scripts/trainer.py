"""Build the trainer of `marble train` for scripts: one process, no run folder, no evaluations."""

from pathlib import Path
from typing import Any

from marble_cli.config.schema import RunConfig
from marble_cli.data.prompts import load_prompts
from marble_cli.distributed.layout import Replicated
from marble_cli.distributed.ranks import Ranks
from marble_cli.policy.base import Policy
from marble_cli.rewards.scorer import Scorer
from marble_cli.run.build import build_balance, build_optimizer, build_trainer
from marble_cli.run.loop import Trainer
from marble_cli.run.state import initial_progress


class SilentRecorder:
    """A recorder that keeps nothing."""

    def stage(self, name: str, total: int) -> None: ...
    def advance(self, count: int) -> None: ...
    def message(self, text: str) -> None: ...
    def record(self, metrics: dict[str, Any]) -> None: ...
    def pictures(self, step: int, evaluation: object, *, first: bool) -> None: ...


def make_trainer(config: RunConfig, policy: Policy, scorer: Scorer) -> Trainer:
    """Build a trainer whose single steps can be taken; it writes no file."""
    return build_trainer(
        config,
        folder=Path("unused"),
        policy=policy,
        optimizer=build_optimizer(config, policy),
        balance=build_balance(config),
        eval_scorer=scorer,
        sources=load_prompts(config.data, "train"),
        held_out=[],
        layout=Replicated(Ranks()),
        recorder=SilentRecorder(),
        progress=initial_progress(policy),
    )
