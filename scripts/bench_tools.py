"""What all benchmarks share: alternating timings, peaks of memory, and tables that print alike everywhere."""

import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces every start and stop otherwise

Job = Callable[[], object]
Cell = str | float | None
Name = TypeVar("Name", bound=Hashable)  # of a job


@dataclass(frozen=True)
class Sheet:
    """One table: `columns` from heading to the format of its numbers, and `rows` of cells in their order."""

    title: str
    note: str
    columns: Mapping[str, str]
    rows: list[tuple[Cell, ...]]

    def written(self) -> list[list[str]]:
        """The rows as text; what does not exist is a dash."""
        formats = list(self.columns.values())
        return [
            ["-" if cell is None else cell if isinstance(cell, str) else format(cell, spec)
             for cell, spec in zip(row, formats, strict=True)]
            for row in self.rows
        ]  # fmt: skip

    def table(self) -> Table:
        """For the terminal."""
        table = Table(title=self.title, caption=self.note, title_justify="left", caption_justify="left")
        for heading, spec in self.columns.items():
            table.add_column(heading, justify="right" if spec else "left")
        for row in self.written():
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For a page of the documentation."""
        rule = ["---:" if spec else "---" for spec in self.columns.values()]
        lines = [" | ".join(cells) for cells in [list(self.columns), rule, *self.written()]]
        return "\n".join([f"## {self.title}", "", self.note, "", *(f"| {line} |" for line in lines), ""])

    def data(self) -> dict[str, object]:
        """For a machine: numbers with all their digits."""
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return {"title": self.title, "note": self.note, "rows": rows}


def alternate(jobs: Mapping[Name, Job], repeats: int) -> dict[Name, list[float]]:
    """Wall seconds of each job in each of `repeats` rounds A B C, A B C, ..., after a round that does not count."""
    seconds: dict[Name, list[float]] = {name: [] for name in jobs}
    for repeat in range(repeats + 1):
        for name, job in jobs.items():
            gc.collect()
            synchronise()
            began = time.perf_counter()
            job()
            synchronise()
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(seconds: list[float], against: list[float]) -> float:
    """Median over rounds of a job's time over another's in the same round: what slows both cancels."""
    return statistics.median(a / b for a, b in zip(seconds, against, strict=True))


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes(job: Job, device: torch.device) -> int:
    """The most bytes that tensors took at any one time during `job`, beyond those that were there before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        job()
        synchronise()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        job()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        record.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    live = peak = 0
    for _, change in changes:
        live += change
        peak = max(peak, live)
    return peak
