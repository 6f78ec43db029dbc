"""Show the progress of a run: a live view on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


def reward_names(metrics: Mapping[str, Any]) -> list[str]:
    """Return the names of the rewards that have a mean in a row of metrics."""
    return [key.split("/")[1] for key in metrics if key.startswith("reward/") and key.endswith("/mean")]


def readable(mean: float) -> str:
    """Return a mean with three decimals, or three digits and an exponent where these say nothing."""
    return f"{mean:.3f}" if mean == 0 or 1e-3 <= abs(mean) < 1e7 else f"{mean:.2e}"


class TerminalView:
    """Show progress bars and the last reward means on a terminal, and a line per row elsewhere.

    Args:
        total: the last step of the run.
        first: the last finished step at the start.
        console: where to print; standard output if None.
    """

    def __init__(self, total: int, first: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self.total = total
        self.began, self.first, self.done = time.monotonic(), first, first
        self.start: dict[str, float] = {}
        self.alphas: dict[str, float] = {}
        self.bars = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(28),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.steps = self.bars.add_task("step", total=total, completed=first)
        self.inner = self.bars.add_task("start", total=1)
        self.live = (
            Live(self.bars, console=self.console, refresh_per_second=4) if self.console.is_terminal else None
        )
        if self.live:
            self.live.start()

    def stage(self, name: str, total: int) -> None:
        self.bars.reset(self.inner, description=name, total=total)

    def advance(self, count: int) -> None:
        self.bars.advance(self.inner, count)

    def message(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def write(self, metrics: Mapping[str, Any]) -> None:
        if metrics["phase"] == "train":
            self.done = metrics["step"]
            self.bars.update(self.steps, completed=self.done)
        for name in reward_names(metrics):
            self.start.setdefault(f"{metrics['phase']}/{name}", metrics[f"reward/{name}/mean"])
            if f"balance/alpha/{name}" in metrics:
                self.alphas[name] = metrics[f"balance/alpha/{name}"]
        if self.live and metrics["phase"] == "train":
            self.live.update(Group(self.bars, self._table(metrics)))
        else:
            self.message(self.line(metrics))

    def line(self, metrics: Mapping[str, Any]) -> str:
        """Return a line with the reward means of one step or evaluation."""
        means = "  ".join(
            f"{name} {readable(metrics[f'reward/{name}/mean'])}" for name in reward_names(metrics)
        )
        if metrics["phase"] == "eval":
            return f"eval {metrics['step']:>5}        {means}"
        left = (time.monotonic() - self.began) / max(1, self.done - self.first) * (self.total - self.done)
        seconds = f"{metrics['time/step']:.1f} s, {left / 60:.1f} min left"
        return f"step {metrics['step']:>5}/{self.total}  {means}  {seconds}"

    def _table(self, metrics: Mapping[str, Any]) -> Table:
        table = Table(box=None, pad_edge=False)
        for heading in ("reward", "mean", "since start", "alpha", "n"):
            table.add_column(heading, justify="left" if heading == "reward" else "right")
        for name in reward_names(metrics):
            mean = metrics[f"reward/{name}/mean"]
            table.add_row(
                name,
                f"{mean:.4f}",
                f"{mean - self.start[f'train/{name}']:+.4f}",
                f"{self.alphas[name]:.3f}" if name in self.alphas else "",
                str(metrics[f"reward/{name}/applicable"]),
            )
        return table

    def close(self) -> None:
        if self.live:
            self.live.stop()
