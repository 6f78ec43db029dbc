"""What a run has written down so far: its metrics file, checked and parted by phase."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marble_cli.errors import RequestError

Row = dict[str, Any]
Series = tuple[list[int], list[float]]  # steps, and the figure at each
OF_REWARDS = ("reward", "advantage", "balance/alpha", "balance/weight", "balance/grad_norm", "balance/cosine")


@dataclass(frozen=True)
class History:
    """The rows of a metrics file: `train` of optimizer steps, `held_out` of evaluations, both in order.

    `torn` tells that the file's last line is cut short, as a kill leaves it, and is left out.
    """

    train: list[Row]
    held_out: list[Row]
    torn: bool = False

    @property
    def rewards(self) -> tuple[str, ...]:
        """The trained rewards, in the run's order."""
        return tuple(dict.fromkeys(name for row in self.train for key in row if (name := _reward(key))))

    @property
    def refreshes(self) -> list[Row]:
        """Steps that took every reward's gradient apart, or solved the balance anew."""
        return [row for row in self.train if row.get("balance/refresh") == 1]

    def fresh_shares(self, name: str) -> Series:
        """A reward's unsmoothed shares at the refreshes."""
        return series(self.refreshes, f"balance/alpha/{name}")

    def cached_shares(self, name: str) -> Series:
        """A reward's smoothed shares: those that refreshes cached and those that other steps worked with."""
        rows = [
            {"step": row["step"], "share": row[key]}
            for row in self.train
            if (key := f"balance/alpha{'_cached' if row.get('balance/refresh') else ''}/{name}") in row
        ]
        return series(rows, "share")


def _reward(key: str) -> str | None:
    """The reward that a figure is of, if it is of one."""
    for prefix in OF_REWARDS:
        if key.startswith(f"{prefix}/"):
            return key.removeprefix(f"{prefix}/").split("/")[0]
    return None


def series(rows: Iterable[Row], key: str) -> Series:
    """The finite values of `key`, with the steps; rows without one are left out."""
    found = [
        (row["step"], row[key])
        for row in rows
        if isinstance(row.get(key), int | float) and math.isfinite(row[key])
    ]
    return [step for step, _ in found], [value for _, value in found]


def open_history(run: Path) -> History:
    """Read the metrics of the run in folder `run`.

    Raises:
        RequestError: it is no run's folder, a line before the last is damaged, or no step is finished yet.
    """
    path = run / "metrics.jsonl"
    if not run.is_dir():
        raise RequestError(f"{run} is not a folder. Expected a run's, e.g. runs/first.")
    if not path.is_file():
        raise RequestError(f"{run} holds no metrics.jsonl. Expected a run's folder, e.g. runs/first.")
    rows, torn = _rows(path)
    train = [row for row in rows if row["phase"] == "train"]
    if not train:
        raise RequestError(f"{path} holds no finished training step. Expected at least one; train on first.")
    return History(train, [row for row in rows if row["phase"] == "eval"], torn)


def _rows(path: Path) -> tuple[list[Row], bool]:
    """The rows of a metrics file, and whether its last line was cut short."""
    rows: list[Row] = []
    lines = path.read_bytes().strip().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:  # not JSON, or not text at all
            row = None
            if number == len(lines):
                return rows, True
        if not isinstance(row, dict) or not {"step", "phase"} <= row.keys():
            raise RequestError(
                f"{path}, line {number}: expected a JSON object with step and phase. Restore the file or remove the line."
            )
        rows.append(row)
    return rows, False
