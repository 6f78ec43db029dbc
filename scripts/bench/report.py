"""Tables of figures: printed on the terminal, written as a page of the documentation and as JSON."""

import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

WIDTH = 100  # columns of the terminal

Cell = str | float | None


@dataclass(frozen=True)
class Sheet:
    """A table: `columns` maps each heading to the format of its numbers, `rows` hold cells in that order."""

    title: str
    note: str
    columns: Mapping[str, str]
    rows: list[tuple[Cell, ...]]

    def formatted_rows(self) -> list[list[str]]:
        """Format every cell as text; a missing figure becomes a dash."""
        formats = list(self.columns.values())
        return [
            [format_cell(cell, spec) for cell, spec in zip(row, formats, strict=True)] for row in self.rows
        ]

    def terminal_table(self) -> Table:
        """Return the table for a terminal."""
        table = Table(title=self.title, caption=self.note, title_justify="left", caption_justify="left")
        for heading, spec in self.columns.items():
            table.add_column(heading, justify="right" if spec else "left")
        for row in self.formatted_rows():
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Return the table as a section of a Markdown page."""
        rule = ["---:" if spec else "---" for spec in self.columns.values()]
        lines = [" | ".join(cells) for cells in [list(self.columns), rule, *self.formatted_rows()]]
        return "\n".join([f"## {self.title}", "", self.note, "", *(f"| {line} |" for line in lines), ""])

    def data(self) -> dict[str, object]:
        """Return the table for JSON, with every digit of its numbers."""
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return {"title": self.title, "note": self.note, "rows": rows}


def format_cell(cell: Cell, spec: str) -> str:
    """Format one cell; text stays as it is and a missing figure becomes a dash."""
    if cell is None:
        return "-"
    return cell if isinstance(cell, str) else format(cell, spec)


def describe_machine() -> dict[str, str]:
    """Name the hardware and the versions that the figures depend on."""
    machine = {
        "processor": processor_name(),
        "cores": str(os.cpu_count()),
        "torch threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return machine | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def processor_name() -> str:
    """Read the processor's name from /proc/cpuinfo, or ask Python where there is no such file."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine_line() -> str:
    """Return the machine's description on one line."""
    return ", ".join(f"{key} {value}" for key, value in describe_machine().items())


def markdown_page(sheets: list[Sheet], command: str) -> str:
    """Return all tables as one page of the documentation, headed by command and machine."""
    head = f"# What MARBLE costs\n\nMade by `{command}` on {machine_line()}.\n"
    return "\n".join([head, *(sheet.markdown() for sheet in sheets)])


def publish(sheets: Iterable[Sheet], command: str, page: Path | None, data: Path | None) -> None:
    """Print every table as soon as it is measured, then write the files that were asked for.

    Args:
        sheets: tables; a generator may measure them one by one.
        command: the command line that reproduces them.
        page: the Markdown file to write, if any.
        data: the JSON file to write, if any.
    """
    console = Console(width=WIDTH)
    console.print(machine_line())
    done = []
    for sheet in sheets:
        console.print(sheet.terminal_table())
        done.append(sheet)
    if page:
        page.write_text(markdown_page(done, command), encoding="utf-8")
    if data:
        write_json(done, command, data)


def write_json(sheets: Iterable[Sheet], command: str, file: Path) -> None:
    """Write the tables with every digit of their numbers, the command and the machine."""
    content = {
        "command": command,
        "machine": describe_machine(),
        "tables": [sheet.data() for sheet in sheets],
    }
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
