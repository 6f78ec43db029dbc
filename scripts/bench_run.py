"""How fast a whole run is: single-reward training against MARBLE, from the trainer's own steps on the embedded model.

Every kind of step is taken by a `Trainer` of its own, rollout, rewards, gradients and update, in alternation and on the
same prompts. A run is then put together from the medians of what the trainer itself logs as `time/...`.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench_tools import Cell, Sheet, alternate, ratio

from marble_cli.config.compose import compose
from marble_cli.config.schema import RunConfig
from marble_cli.data.prompts import load_prompts
from marble_cli.distributed.layout import Replicated
from marble_cli.distributed.ranks import Ranks
from marble_cli.policy.base import Policy
from marble_cli.policy.load import load_policy
from marble_cli.rewards.scorer import Scorer, open_scorer
from marble_cli.run.build import build_balance, build_optimizer, build_trainer
from marble_cli.run.loop import Trainer
from marble_cli.run.state import initial_progress

REFRESH_EVERY = 10
STEPS = {
    "plain": ("balance=weighted_sum", "balance.mode=amortized"),
    "amortised": ("balance=marble",),
    "refresh": ("balance=marble", "balance.mode=full"),
    "refresh on a quarter": ("balance=marble", "balance.mode=full", "balance.refresh_fraction=0.25"),
    "refresh, shared term inside": ("balance=marble", "balance.mode=full", "balance.shared_term=inside"),
}
ALONE = "plain, one reward scored"
# A step of every kind refreshes first, which fills the cache, and never again unless its mode says so.
COMMON = (
    "balance.warmup=0", "balance.refresh_every=1000000", "logging.wandb.mode=disabled", "logging.images_every=0",
)  # fmt: skip


class Silent:
    """A recorder that keeps nothing."""

    def stage(self, name: str, total: int) -> None: ...
    def advance(self, count: int) -> None: ...
    def message(self, text: str) -> None: ...
    def record(self, metrics: dict[str, Any]) -> None: ...
    def pictures(self, step: int, evaluation: object) -> None: ...


def make_trainer(config: RunConfig, policy: Policy, scorer: Scorer) -> Trainer:
    """A trainer as `marble train` makes it, without a folder and without evaluations."""
    return build_trainer(
        config, Path("unused"), policy, build_optimizer(config, policy), build_balance(config), scorer,
        load_prompts(config.data, "train"), [], Replicated(Ranks()), Silent(), initial_progress(policy),
    )  # fmt: skip


def stepper(trainer: Trainer, times: list[Mapping[str, float]]) -> Callable[[], None]:
    """A function that takes the trainer's next step and appends the seconds that it logged."""

    def take() -> None:
        trainer.progress.step += 1
        times.append(trainer.step(trainer.progress.step))

    return take


def time_run(repeats: int, overrides: tuple[str, ...]) -> Sheet:
    """Seconds of each kind of step, and the speed of runs put together from them over single-reward training.

    Args:
        repeats: steps of each kind.
        overrides: of `preset=tiny`, for all of them.
    """
    configs = {name: compose(["preset=tiny", *overrides, *COMMON, *own]) for name, own in STEPS.items()}
    first = next(iter(configs["plain"].rewards))
    plain = configs["plain"]
    configs[ALONE] = replace(plain, rewards={first: plain.rewards[first]})
    policy = load_policy(plain.model, plain.trainer.seed)
    times: dict[str, list[Mapping[str, float]]] = {name: [] for name in configs}
    with ExitStack() as stack:
        scorer = stack.enter_context(open_scorer(plain.rewards, str(policy.device)))
        jobs = {
            name: stepper(make_trainer(config, policy, scorer.only(list(config.rewards))), times[name])
            for name, config in configs.items()
        }
        alternate(jobs, repeats)
    counted = {name: steps[1:] for name, steps in times.items()}  # the first fills caches
    return run_sheet(counted, f"{plain.rollout.groups * plain.rollout.group_size} images a step")


def run_sheet(times: Mapping[str, list[Mapping[str, float]]], what: str) -> Sheet:
    """Put runs together from their steps' logged seconds, round by round, and take the medians of the rounds."""
    train = {name: [step["time/train"] for step in steps] for name, steps in times.items()}
    five = _rollout(step for name, steps in times.items() if name != ALONE for step in steps)
    one = _rollout(times[ALONE])
    rows: list[tuple[Cell, ...]] = []
    for name, took in train.items():
        speeds: tuple[Cell, Cell] = (None, None)
        if name.startswith("refresh"):
            mean = [
                five + amortised + (refresh - amortised) / REFRESH_EVERY
                for amortised, refresh in zip(train["amortised"], took, strict=True)
            ]
            speeds = (
                ratio([five + seconds for seconds in train["plain"]], mean),
                ratio([one + seconds for seconds in train[ALONE]], mean),
            )
        rollout = one if name == ALONE else five
        rows.append((name, rollout, statistics.median(took), ratio(took, train["plain"]), *speeds))
    return Sheet(
        "A whole run on tiny with five rewards",
        f"{what}; medians of {len(train['plain'])} alternating steps of the real trainer. Speed is that of a run with one "
        f"such refresh in {REFRESH_EVERY} steps, the others amortised, put together from the parts: {REFRESH_EVERY} (rollout + "
        f"plain) / ({REFRESH_EVERY - 1} (rollout + amortised) + (rollout + refresh)), rollout and the scoring of five rewards "
        "being the same in all. The last column compares with a single-reward run that scores its one reward only.",
        {
            "step": "", "rollout s": ".3f", "train s": ".3f", "x plain": ".3f", "speed of run": ".3f",
            "one scored": ".3f",
        },
        rows,
    )  # fmt: skip


def _rollout(steps: Iterable[Mapping[str, float]]) -> float:
    """Median seconds until all scores are there."""
    return statistics.median(step["time/rollout"] + step["time/reward"] for step in steps)
