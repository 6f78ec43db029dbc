"""The metrics of a run so far, checked and divided by phase."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from marble_cli.errors import RequestError
from marble_cli.metrics.jsonl import Row, read_checked_rows

Series = tuple[list[int], list[float]]  # steps, and the value at each step
PER_REWARD = ("reward", "advantage", "balance/alpha", "balance/weight", "balance/grad_norm", "balance/cosine")


@dataclass(frozen=True)
class History:
    """The rows of a metrics file.

    Attributes:
        train: the rows of optimizer steps, in order.
        held_out: the rows of evaluations, in order, from the one that the last is compared with: a run that
            is resumed with other held-out prompts, or draws them differently, compares anew.
        truncated: whether the file's last line was truncated by a kill; that line is left out.
    """

    train: list[Row]
    held_out: list[Row]
    truncated: bool = False

    @cached_property
    def rewards(self) -> tuple[str, ...]:
        """The names of the trained rewards and the guards, in the run's order."""
        return _rewards(self.train)

    @cached_property
    def watched(self) -> tuple[str, ...]:
        """The names of the rewards that only evaluations have, in the run's order."""
        return tuple(name for name in _rewards(self.held_out) if name not in self.rewards)

    @cached_property
    def guards(self) -> tuple[str, ...]:
        """The names of the guards among the rewards, in the run's order; known once one was solved for."""
        solved = {key.split("/")[2] for row in self.train for key in row if key.startswith("balance/guard/")}
        return tuple(name for name in self.rewards if name in solved)

    @property
    def refreshes(self) -> list[Row]:
        """The rows of steps that computed the rewards' gradients separately or solved the balance."""
        return [row for row in self.train if row.get("balance/refresh") == 1]

    def ends(self, name: str) -> tuple[float | None, float | None]:
        """Return the first known mean of a reward, and that of the last evaluation if there are several."""
        known, last = (
            series(rows, f"reward/{name}/mean")[1] for rows in (self.held_out, self.held_out[1:][-1:])
        )
        return next(iter(known), None), next(iter(last), None)

    def last_gain(self, name: str) -> float | None:
        """Return the gain of a reward at the last evaluation, in standard deviations; None if unknown."""
        if len(self.held_out) < 2:
            return None
        gain, change = (self.held_out[-1].get(f"reward/{name}/{key}") for key in ("gain", "change"))
        deviations = series(self.held_out, f"reward/{name}/std")[1]
        if gain is None and change is not None and deviations and deviations[0] > 0:
            gain = change / deviations[0]  # of a version that did not record it
        return gain

    def fresh_shares(self, name: str) -> Series:
        """Return a reward's unsmoothed shares at the refreshes."""
        return series(self.refreshes, f"balance/alpha/{name}")

    def cached_shares(self, name: str) -> Series:
        """Return a reward's smoothed shares: as cached by refreshes, and as used by the other steps."""
        rows = [
            {"step": row["step"], "share": row[key]}
            for row in self.train
            if (key := f"balance/alpha{'_cached' if row.get('balance/refresh') else ''}/{name}") in row
        ]
        return series(rows, "share")


def _rewards(rows: list[Row]) -> tuple[str, ...]:
    keys = dict.fromkeys(key for row in rows for key in row)
    return tuple(dict.fromkeys(name for key in keys if (name := _reward(key))))


def _reward(key: str) -> str | None:
    """Return the reward that a metrics key belongs to, if any."""
    for prefix in PER_REWARD:
        if key.startswith(f"{prefix}/"):
            return key.removeprefix(f"{prefix}/").split("/")[0]
    return None


def series(rows: Iterable[Row], key: str) -> Series:
    """Return the finite values of `key` with their steps; rows without a finite value are left out."""
    points = [
        (row["step"], row[key])
        for row in rows
        if isinstance(row.get(key), int | float) and math.isfinite(row[key])
    ]
    return [step for step, _ in points], [value for _, value in points]


def read_metrics(run: Path) -> History:
    """Read the metrics of the run in folder `run`; a run that has written none yet has no rows.

    Raises:
        RequestError: the folder holds no run, or a line before the last is damaged.
    """
    path = run / "metrics.jsonl"
    if not run.is_dir():
        raise RequestError(f"{run} is not a folder. Expected a run's folder, e.g. runs/first.")
    if not path.is_file():
        if (run / "config.yaml").is_file():
            return History([], [])
        runs = sorted(file.parent for file in run.glob("*/metrics.jsonl"))
        expected = f"one of the runs in it, such as {runs[0]}" if runs else "a run's folder, e.g. runs/first"
        raise RequestError(f"{run} holds no metrics.jsonl. Expected {expected}.")
    rows, truncated = read_checked_rows(path)
    train, held_out = ([row for row in rows if row["phase"] == phase] for phase in ("train", "eval"))
    starts = [place for place, row in enumerate(held_out) if "eval/start" in row]
    return History(train, held_out[starts[-1] :] if starts else held_out, truncated)


def read_history(run: Path) -> History:
    """Read the metrics of the run in folder `run`, which has at least one finished training step.

    Raises:
        RequestError: the folder holds no run, a line before the last is damaged, or no step is finished yet.
    """
    history = read_metrics(run)
    if not history.train:
        raise RequestError(
            f"{run / 'metrics.jsonl'} holds no finished training step. Expected at least one; continue the "
            "training first."
        )
    return history
