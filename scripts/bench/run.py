"""Compare the speed of whole runs: single-reward training against MARBLE on the embedded model.

Each kind of step has a `Trainer` of its own, which rolls out, scores, takes gradients and updates. All take
turns on the same prompts. The speed of a run then follows from the medians that the trainers log as
`time/...`.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace

from marble_cli.config.compose import compose
from marble_cli.policy.load import load_policy
from marble_cli.rewards.scorer import open_scorer
from marble_cli.run.loop import Trainer
from scripts.bench.report import Cell, Sheet
from scripts.bench.timing import alternate, ratio
from scripts.trainer import make_trainer

REFRESH_EVERY = 10
STEPS = {
    "plain": ("balance=weighted_sum", "balance.mode=amortized"),
    "amortised": ("balance=marble",),
    "refresh": ("balance=marble", "balance.mode=full"),
    "refresh on a quarter": ("balance=marble", "balance.mode=full", "balance.refresh_fraction=0.25"),
    "refresh, shared term inside": ("balance=marble", "balance.mode=full", "balance.shared_term=inside"),
}
SINGLE = "plain, one reward scored"
# The first step of every kind refreshes, which fills the cache. After that only `balance.mode=full`
# refreshes.
COMMON = (
    "balance.warmup=0",
    "balance.refresh_every=1000000",
    "logging.wandb.mode=disabled",
    "logging.images_every=0",
)
COLUMNS = {
    "step": "",
    "rollout s": ".3f",
    "train s": ".3f",
    "x plain": ".3f",
    "speed of run": ".3f",
    "one scored": ".3f",
}

Times = Mapping[str, float]  # of one step, as the trainer logs them


def step_taker(trainer: Trainer, times: list[Times]) -> Callable[[], None]:
    """Return a function that takes the trainer's next step and appends its logged metrics to `times`."""

    def take_step() -> None:
        trainer.progress.step += 1
        times.append(trainer.step(trainer.progress.step))

    return take_step


def time_run(repeats: int, overrides: tuple[str, ...]) -> Sheet:
    """Time every kind of step and compare the runs that follow from them with single-reward training.

    Args:
        repeats: timed steps per kind.
        overrides: settings of all kinds, on top of `preset=tiny`.
    """
    configs = {name: compose(["preset=tiny", *overrides, *COMMON, *own]) for name, own in STEPS.items()}
    plain = configs["plain"]
    first = next(iter(plain.rewards))
    configs[SINGLE] = replace(plain, rewards={first: plain.rewards[first]})
    policy = load_policy(plain.model, plain.trainer.seed)
    times: dict[str, list[Times]] = {name: [] for name in configs}
    with ExitStack() as stack:
        scorer = stack.enter_context(open_scorer(plain.rewards, str(policy.device)))
        jobs = {
            name: step_taker(make_trainer(config, policy, scorer.only(list(config.rewards))), times[name])
            for name, config in configs.items()
        }
        alternate(jobs, repeats)
    timed = {name: steps[1:] for name, steps in times.items()}  # the first fills caches
    return run_sheet(timed, plain.rollout.groups * plain.rollout.group_size)


def run_sheet(times: Mapping[str, list[Times]], images: int) -> Sheet:
    """Compute the speed of runs from the logged seconds of their steps.

    Args:
        times: by kind of step, the metrics of its timed steps; all kinds have equally many.
        images: per step.
    """
    train = {name: [step["time/train"] for step in steps] for name, steps in times.items()}
    five_rollout = median_rollout(step for name, steps in times.items() if name != SINGLE for step in steps)
    single_rollout = median_rollout(times[SINGLE])
    rows: list[tuple[Cell, ...]] = []
    for name, seconds in train.items():
        speeds: tuple[Cell, Cell] = (None, None)
        if name.startswith("refresh"):
            mean_steps = [
                five_rollout + amortised + (refresh - amortised) / REFRESH_EVERY
                for amortised, refresh in zip(train["amortised"], seconds, strict=True)
            ]
            speeds = (
                ratio([five_rollout + plain for plain in train["plain"]], mean_steps),
                ratio([single_rollout + plain for plain in train[SINGLE]], mean_steps),
            )
        rollout = single_rollout if name == SINGLE else five_rollout
        rows.append((name, rollout, statistics.median(seconds), ratio(seconds, train["plain"]), *speeds))
    return Sheet(
        "A whole run on tiny with five rewards",
        f"{images} images per step; medians of {len(train['plain'])} alternating steps of the real trainer. "
        f"The speed is that of a run that refreshes in one of {REFRESH_EVERY} steps and amortises the "
        f"others: {REFRESH_EVERY} (rollout + plain) / ({REFRESH_EVERY - 1} (rollout + amortised) + (rollout "
        "+ refresh)). Rollout and the scoring of five rewards are the same in all. The last column "
        "compares with a run that trains on one reward and scores only that.",
        COLUMNS,
        rows,
    )


def median_rollout(steps: Iterable[Times]) -> float:
    """Return the median seconds from a step's begin until all its scores have arrived."""
    return statistics.median(step["time/rollout"] + step["time/reward"] for step in steps)
