"""Elements of the page: tables, charts with their values, and the formats of numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

MISSING = "–"
ROWS = 24  # of a chart's values in its table


@dataclass(frozen=True)
class Table:
    """A table of texts; the first column names each row."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    # A class of the style sheet for some cells, by (row, column).
    classes: dict[tuple[int, int], str] = field(default_factory=dict)


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        title: what it shows.
        summary: its main values in words, which are its text alternative.
        spec: the chart in Vega-Lite's language.
        values: its values, or some of them evenly spaced.
    """

    title: str
    summary: str
    spec: dict[str, Any]
    values: Table


@dataclass(frozen=True)
class Group:
    """Charts that belong together, and how to read them; without charts, the text says why there are none."""

    title: str
    text: str
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()


def without_runs(table: Table) -> Table:
    """Leave out the column that names the run, for a report about a single one."""
    if "run" not in table.head:
        return table
    place = list(table.head).index("run")
    head, *rows = ([cell for i, cell in enumerate(row) if i != place] for row in (table.head, *table.rows))
    classes = {(row, column - (column > place)): name for (row, column), name in table.classes.items()}
    return Table(table.caption, head, rows, classes)


def number(value: float | None) -> str:
    """Format a number with four significant digits."""
    return MISSING if value is None else f"{value:.4g}".replace("-", "−")


def signed(value: float | None) -> str:
    """Format a change with its sign."""
    return MISSING if value is None else f"{value:+.3g}".replace("-", "−") if value else "0"


def interval(low: float | None, high: float | None, form: str = "+.3g") -> str:
    """Format the ends of an interval."""
    if low is None or high is None:
        return MISSING
    return " … ".join(f"{end:{form}}" if end else "0" for end in (low, high)).replace("-", "−")


def rounded(value: Any) -> Any:
    """Round a float to five significant digits, more than a chart shows; leave anything else as it is."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


def some(items: Sequence[T], most: int = ROWS) -> list[T]:
    """Return at most `most` items, evenly spaced, with the first and, of several, the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(most - 1, 1))] for i in range(most)]
