"""The result of `marble bench`: bench.json for a program, and a table that fits 80 columns for a reader."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from marble_cli.benchmark.score import Score
from marble_cli.files import write_whole, writing

ABREAST = 3  # targets that a table has columns for
WIDTH = len("0.1234 … 0.1234")
FORMAT = 1


@dataclass(frozen=True)
class Result:
    """The scores of one target on one benchmark.

    Attributes:
        benchmark: its name.
        target: the target's label, the digest of its weights and the settings of its model.
        rewards: the score by each reward.
        failed: the number of images on which each reward failed.
        scores: by reward: of each prompt, the scores of its images as the reward gave them.
        seconds: that drawing and scoring took.
        grouped: whether the score is a mean over groups.
    """

    benchmark: str
    target: dict[str, Any]
    rewards: dict[str, Score]
    failed: dict[str, int]
    scores: dict[str, list[list[float | None]]]
    seconds: float
    grouped: bool

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON holds it."""
        rewards = {
            name: score.to_json() | {"failed": self.failed[name], "scores": self.scores[name]}
            for name, score in self.rewards.items()
        }
        return {"benchmark": self.benchmark, **self.target, "rewards": rewards, "seconds": self.seconds}


@dataclass(frozen=True)
class BenchReport:
    """Scores of targets on benchmarks, with what is needed to check them.

    Attributes:
        versions: of the distributions that drew and scored.
        benchmarks: protocol and prompts of each benchmark.
        results: of each benchmark, one per target.
    """

    versions: dict[str, str]
    benchmarks: list[dict[str, Any]]
    results: list[Result]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON holds it."""
        return {
            "format": FORMAT,
            "versions": self.versions,
            "benchmarks": self.benchmarks,
            "results": [result.to_json() for result in self.results],
        }

    def write(self, output: Path) -> None:
        """Write bench.json into the folder `output`.

        Raises:
            StorageError: the file cannot be written.
        """
        other = "Choose another --output."
        with writing(output, other):
            output.mkdir(parents=True, exist_ok=True)
        write_whole(output / "bench.json", json.dumps(self.to_json(), indent=1) + "\n", other)

    def tables(self) -> Iterator[Table]:
        """Yield one table, or several where there are more targets than columns."""
        count = len(self.results) // len(self.benchmarks)
        for start in range(0, count, ABREAST):
            yield self._table(range(start, min(start + ABREAST, count)), count)

    def _table(self, columns: range, count: int) -> Table:
        table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
        table.add_column("benchmark", overflow="fold")
        table.add_column("reward", overflow="fold")
        for place in columns:
            label = escape(self.results[place].target["target"])
            table.add_column(label, justify="right", overflow="fold", min_width=WIDTH)
        rows = [[self.results[first + k] for k in columns] for first in range(0, len(self.results), count)]
        for row in rows:
            name = escape(row[0].benchmark)
            for reward in row[0].rewards:
                scores = [result.rewards[reward] for result in row]
                table.add_row(name, escape(reward), *map(_cell, scores))
                for group in scores[0].groups if row[0].grouped else ():
                    parts = (_number(score.groups.get(group, Score(0)).score) for score in scores)
                    table.add_row("", f"[dim]{escape(group)}[/]", *(f"[dim]{part}[/]" for part in parts))
                name = ""
        table.caption, table.caption_justify = _failures([result for row in rows for result in row]), "left"
        return table


def _failures(results: Sequence[Result]) -> str | None:
    failed = [
        f"{reward} on {number} of {result.benchmark} for {result.target['target']}"
        for result in results
        for reward, number in result.failed.items()
        if number
    ]
    return f"Failed on images: {escape('; '.join(failed))}." if failed else None


def _cell(score: Score) -> str:
    """Return a score above its interval."""
    if score.score is None:
        return "-"
    return f"{_number(score.score)}\n{_number(score.low)} … {_number(score.high)}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"
