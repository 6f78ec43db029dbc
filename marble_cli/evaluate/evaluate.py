"""`marble eval`: score one policy, or two on the same prompts and the same initial noise."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from marble_cli.config.schema import RunConfig
from marble_cli.data.prompts import held_out, load_prompts
from marble_cli.distributed.ranks import Ranks
from marble_cli.evaluate.joint import JointChange, joint_change
from marble_cli.evaluate.score import Evaluation, paired_interval, score_policy
from marble_cli.evaluate.target import Target, resolve_target, run_config
from marble_cli.files import check_writable, write_whole, writing
from marble_cli.metrics.figures import image_grid, try_to_draw
from marble_cli.policy.base import Adapter, Policy
from marble_cli.policy.load import load_policy
from marble_cli.rewards.scorer import Scorer, open_scorer
from marble_cli.rollout.collect import Rollout, evaluation_settings


@dataclass(frozen=True)
class RewardResult:
    """Result of one reward on the `n` images that it scored; on `failed` further images it failed.

    `reference`, `difference` and its 95 % interval from `low` to `high` are set only against another policy.
    """

    name: str
    n: int
    failed: int
    mean: float | None = None
    reference: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON holds it, without the figures that are not set."""
        own: dict[str, Any] = {"n": self.n, "failed": self.failed, "mean": self.mean}
        if self.difference is None:
            return own
        return own | {
            "reference": self.reference,
            "difference": self.difference,
            "interval": [self.low, self.high],
        }


@dataclass(frozen=True)
class EvalReport:
    """Report of `marble eval`: a table for a reader, JSON for a program.

    `joint` counts images over all trained rewards at once; it is set only against another policy.
    """

    target: str
    against: str | None
    rewards: list[RewardResult]
    prompts: int
    joint: JointChange | None = None

    def to_json(self) -> dict[str, Any]:
        joint = {} if self.joint is None else {"joint": self.joint.to_json()}
        return joint | {
            "target": self.target,
            "against": self.against,
            "prompts": self.prompts,
            "rewards": {r.name: r.to_json() for r in self.rewards},
        }

    def table(self) -> Table:
        title = self.target if self.against is None else f"{self.target} against {self.against}"
        caption = None if self.joint is None else self.joint.describe()
        table = Table(title=escape(f"{title}: {self.prompts} held-out prompts"), caption=caption)
        table.add_column("reward")
        for heading in ("n", "mean"):
            table.add_column(heading, justify="right")
        if self.against is not None:
            for heading in ("against", "difference", "95 % interval"):
                table.add_column(heading, justify="right")
        for r in self.rewards:
            row = [r.name, str(r.n) + (f" ({r.failed} failed)" if r.failed else "")]
            row.append("" if r.mean is None else f"{r.mean:.4f}")
            if r.difference is not None:
                assert r.low is not None
                assert r.high is not None
                color = "green" if r.low > 0 else "red" if r.high < 0 else "yellow"
                row += [
                    f"{r.reference:.4f}",
                    f"[{color}]{r.difference:+.4f}[/]",
                    f"{r.low:+.4f} … {r.high:+.4f}",
                ]
            table.add_row(*row)
        return table


def compare(one: Evaluation, other: Evaluation | None) -> list[RewardResult]:
    """Compare two policies reward by reward, over the images that the reward scored for both.

    Without `other`, the results are those of `one` alone.
    """
    results = []
    for k, name in enumerate(one.scores.names):
        both, failed = one.scores.applicable[k], int(one.scores.failed[k].sum())
        if other is not None:
            both, failed = both & other.scores.applicable[k], failed + int(other.scores.failed[k].sum())
        values = one.scores.values[k][both].numpy()
        if not len(values):
            results.append(RewardResult(name, 0, failed))
        elif other is None:
            results.append(RewardResult(name, len(values), failed, float(values.mean())))
        else:
            reference = other.scores.values[k][both].numpy()
            difference = np.asarray(values - reference)
            means = (float(values.mean()), float(reference.mean()), float(difference.mean()))
            results.append(RewardResult(name, len(values), failed, *means, *paired_interval(difference)))
    return results


def compare_jointly(one: Evaluation, other: Evaluation, rewards: Sequence[str]) -> JointChange | None:
    """Compare two policies image by image, over all of `rewards`; None if none scored an image for both."""
    rows = [one.scores.names.index(name) for name in rewards]
    both = one.scores.applicable[rows] & other.scores.applicable[rows]
    return joint_change(one.scores.values[rows].numpy(), other.scores.values[rows].numpy(), both.numpy())


def draw(target: Target, policy: Policy, config: RunConfig, scorer: Scorer) -> Evaluation:
    """Draw and score the held-out prompts with one target's weights, which `policy` then holds."""
    target.put_into(policy)
    prompts = held_out(load_prompts(config.data, "test"), config.trainer.eval_prompts)
    adapter: Adapter = None if target.weights is None else "trained"
    rollout = Rollout(policy, evaluation_settings(config.rollout, config.evaluation), config.trainer.seed)
    return score_policy(rollout, adapter, prompts, scorer, Ranks.alone(), lambda n: None)


def evaluate(target: str, against: str | None, overrides: list[str], output: Path | None) -> EvalReport:
    """Evaluate `target`, against another policy if given, and write images to `output` if given.

    Raises:
        RequestError: a target, override or reward is wrong.
        RewardError: a reward failed on too many images.
    """
    first = resolve_target(target)
    second = resolve_target(against) if against is not None else None
    config = run_config(overrides, first, second)
    if output is not None:
        check_writable(output, "--output ")
        output = output.absolute()
    policy = load_policy(config.model, config.trainer.seed)
    rewards = {**config.rewards, **config.eval_rewards}
    with open_scorer(rewards, str(policy.device)) as scorer:
        one = draw(first, policy, config, scorer)
        other = draw(second, policy, config, scorer) if second is not None else None
    joint = None if other is None else compare_jointly(one, other, list(config.rewards))
    against_label = None if second is None else second.label
    report = EvalReport(first.label, against_label, compare(one, other), len(one.prompts), joint)
    if output is not None:
        with writing(output, "Choose another --output."):
            output.mkdir(parents=True, exist_ok=True)
        write_whole(output / "report.json", json.dumps(report.to_json(), indent=1) + "\n")
        rows = [(second.label, other.images)] if second is not None and other is not None else []
        rows.append((first.label, one.images))
        file = output / "images.png"
        try_to_draw(file, "The report is written.", lambda: image_grid(rows, one.captions, file))
    return report
