"""The report of `marble eval`: JSON for a program, and tables that fit an 80-column terminal for a reader."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from marble_cli.config.evaluation import EvaluationSettings
from marble_cli.evaluate.compare import Comparison, Figures, RewardResult
from marble_cli.wording import count

COLORS = {"rose": "green", "fell": "red", "undecided": "yellow"}
SOURCES_ABREAST = 4  # that a table has columns for


@dataclass(frozen=True)
class EvalReport:
    """Report on one target: alone, and against any number of other policies.

    Attributes:
        target: its label.
        prompts: number of prompts.
        settings: how the images were drawn.
        alone: the results of the target by itself.
        diversity: of the target by itself; None with one image per prompt.
        comparisons: one per other policy.
    """

    target: str
    prompts: int
    settings: EvaluationSettings
    alone: list[RewardResult]
    diversity: Figures | None
    comparisons: list[Comparison]

    @property
    def rewards(self) -> list[RewardResult]:
        """Results against the first other policy, or of the target alone."""
        return self.comparisons[0].rewards if self.comparisons else self.alone

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON holds it; the top level has the first comparison's results."""
        first = self.comparisons[0] if self.comparisons else None
        joint = {} if first is None or first.joint is None else {"joint": first.joint.to_json()}
        diversity = self.diversity if first is None else first.diversity
        return joint | {
            "target": self.target,
            "against": None if first is None else first.against,
            "prompts": self.prompts,
            "rewards": {result.name: result.to_json() for result in self.rewards},
            "diversity": None if diversity is None else diversity.to_json(),
            "evaluation": self.settings.to_json(),
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
        }

    def tables(self) -> Iterator[Group]:
        """Yield the tables: per comparison the rewards, then the sources if there are several."""
        images = self.settings.images_per_prompt
        asked = count(self.prompts, "held-out prompt") + (f" x {images} images" if images > 1 else "")
        if not self.comparisons:
            yield _plain_table(f"{self.target}: {asked}", self.alone, self.diversity)
            yield from _source_tables("mean by source", self.alone)
        for comparison in self.comparisons:
            yield _comparison_table(f"{self.target} against {comparison.against}: {asked}", comparison)
            yield from _source_tables(f"change against {comparison.against} by source", comparison.rewards)


def _titled(title: str, table: Table, *notes: str | None) -> Group:
    """Put a title above a table and notes below it, which a narrow table then does not wrap."""
    return Group(Text(title, "italic"), table, *(Text(note, "dim italic") for note in notes if note))


def _table(headings: Sequence[str], gap: int = 2) -> Table:
    # The box adds a blank to the padding.
    table = Table(box=box.SIMPLE_HEAD, padding=(0, gap - 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("reward", overflow="fold")
    for heading in headings:
        table.add_column(escape(heading), justify="right", no_wrap=True)
    return table


def _plain_table(title: str, rewards: Sequence[RewardResult], diversity: Figures | None) -> Group:
    table = _table(("n", "mean"))
    rows: list[tuple[str, Figures]] = [(result.name, result) for result in rewards]
    for name, figures in [*rows, *([("diversity", diversity)] if diversity is not None else [])]:
        table.add_row(escape(name), str(figures.n), _number(figures.mean))
    return _titled(title, table, _failures(rewards))


def _comparison_table(title: str, comparison: Comparison) -> Group:
    table = _table(("n", "mean", "against", "change", "95 % interval", "wins", "verdict"), gap=1)
    for result in comparison.rewards:
        if result.verdict is None or result.win_rate is None:
            table.add_row(escape(result.name), str(result.n))
            continue
        color = COLORS[result.verdict]
        end = (f"{result.win_rate:.0%}", f"[{color}]{result.verdict}[/]")
        table.add_row(escape(result.name), *_cells(result, color), *end)
    if (figures := comparison.diversity) is not None:
        table.add_row("diversity", *(_cells(figures, _color(figures)) if figures.n else ["0"]))
    joint = comparison.joint.describe() if comparison.joint else None
    return _titled(title, table, _failures(comparison.rewards), joint)


def _cells(figures: Figures, color: str) -> Iterator[str]:
    yield from (str(figures.n), _number(figures.mean), _number(figures.reference))
    yield f"[{color}]{_number(figures.difference, '+')}[/]"
    yield f"{_number(figures.low, '+')} … {_number(figures.high, '+')}"


def _source_tables(title: str, rewards: Sequence[RewardResult]) -> Iterator[Group]:
    """Yield the means of every source, or the changes in color where their interval excludes 0."""
    sources = list(dict.fromkeys(source for result in rewards for source in result.sources))
    for start in range(0, len(sources), SOURCES_ABREAST) if len(sources) > 1 else ():
        some = sources[start : start + SOURCES_ABREAST]
        table = _table(some)
        for result in rewards:
            table.add_row(escape(result.name), *(_by_source(result.sources, source) for source in some))
        yield _titled(title, table)


def _by_source(sources: Mapping[str, Figures], source: str) -> str:
    if source not in sources:
        return ""
    figures = sources[source]
    if figures.difference is None:
        return _number(figures.mean)
    return f"[{_color(figures)}]{_number(figures.difference, '+')}[/]"


def _color(figures: Figures) -> str:
    assert figures.low is not None
    assert figures.high is not None
    return "green" if figures.low > 0 else "red" if figures.high < 0 else "yellow"


def _failures(rewards: Sequence[RewardResult]) -> str | None:
    """Name the rewards that failed on images, if any did."""
    failed = [f"{result.name} on {result.failed}" for result in rewards if result.failed]
    return f"Failed on images: {', '.join(failed)}." if failed else None


def _number(value: float | None, sign: str = "") -> str:
    if value is None:
        return ""
    return f"{value:{sign}.4f}" if abs(value) < 100 else f"{value:{sign}.1f}"
