"""Read what became of each cell of a sweep, and tabulate it for the terminal."""

from collections.abc import Iterator
from dataclasses import dataclass

from rich import box
from rich.markup import escape
from rich.table import Table

from marble_cli.errors import RequestError
from marble_cli.metrics.history import History, read_metrics
from marble_cli.sweep.record import Sweep


@dataclass(frozen=True)
class Result:
    """What became of a cell.

    Attributes:
        name: of the cell.
        steps: the last finished step; 0 before the first.
        joint_improvement: share of the held-out images at the last evaluation, None without two.
        worst: the trained reward or guard that gained least, and its change since the start in standard
            deviations.
        failure: why the cell failed when it last ran.
    """

    name: str
    steps: int
    joint_improvement: float | None = None
    worst: tuple[str, float] | None = None
    failure: str | None = None

    def describe_worst(self) -> str:
        """Return the worst reward with its change, such as `ocr -0.12 sd`; empty if it is unknown."""
        if self.worst is None:
            return ""
        name, change = self.worst
        return f"{name} {round(change, 2) + 0.0:+.2f} sd"  # + 0.0: never -0.00


def read_results(sweep: Sweep) -> list[Result]:
    """Read the results of a sweep's cells, in order; a cell without metrics has no step."""
    return [_result(sweep, cell.name) for cell in sweep.cells]


def _result(sweep: Sweep, name: str) -> Result:
    failure = sweep.failures.get(name)
    try:
        history = read_metrics(sweep.folder / name)
    except RequestError as error:  # not started, or damaged
        started = (sweep.folder / name / "metrics.jsonl").is_file()
        return Result(name, 0, failure=str(error) if started else failure)
    last = history.held_out[-1] if len(history.held_out) > 1 else {}
    steps = max((row["step"] for row in history.train), default=0)
    return Result(name, steps, last.get("eval/joint_improvement"), worst_reward(history), failure)


def worst_reward(history: History) -> tuple[str, float] | None:
    """Return the trained reward or guard with the least change, in standard deviations of the start.

    None without two evaluations, or if no reward has a gain.
    """
    gains = {name: gain for name in history.rewards if (gain := history.last_gain(name)) is not None}
    return min(gains.items(), key=lambda item: item[1]) if gains else None


def tables(sweep: Sweep) -> Iterator[Table]:
    """Yield the closing table of a sweep, and one of the cells that failed if there are any."""
    results = read_results(sweep)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("cell", overflow="fold")
    for heading in ("steps", "joint improvement", "worst reward"):
        table.add_column(heading, justify="right")
    for result in results:
        joint = "" if result.joint_improvement is None else f"{result.joint_improvement:.1%}"
        table.add_row(escape(result.name), str(result.steps), joint, escape(result.describe_worst()))
    yield table
    if any(result.failure for result in results):
        failed = Table("failed", "why", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for result in results:
            if result.failure:
                failed.add_row(escape(result.name), escape(result.failure))
        yield failed
