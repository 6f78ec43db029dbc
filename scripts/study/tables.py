"""Markdown tables of the study."""

import math

from scripts.study.cells import REWARDS, SPECIALISTS
from scripts.study.choose import Curve
from scripts.study.statistics import COMPOSITE, DECLINED, IMPROVED, WORST, Interval, Summary


def outcome_table(rows: list[Summary]) -> str:
    """Tabulate what every method reached: means, the worst reward, joint changes, and how it got there."""
    heads = ["method", "rate", "mean gain", "worst reward", "all five up", "improved jointly"]
    heads += ["declined jointly", "drift", "pushed down", "between refreshes", "images/s"]
    return markdown_table(
        heads,
        [
            [
                f"`{row.cell.method}`",
                f"{row.cell.rate:.2g}",
                format_gain(row.figures[COMPOSITE]),
                format_gain(row.figures[WORST]),
                f"{row.all_up} of {row.seeds}",
                format_share(row.figures[IMPROVED]),
                format_share(row.figures[DECLINED]),
                format_number(row.drift, ".4f"),
                "" if row.negative is None else f"{row.negative:.0%}",
                "" if row.cached is None else f"{row.cached:.0%}",
                format_number(row.images_per_second, ".0f"),
            ]
            for row in rows
        ],
    )


def gain_table(rows: list[Summary]) -> str:
    """Tabulate every method's gain in every reward."""
    return markdown_table(
        ["method", *REWARDS],
        [[f"`{row.cell.method}`", *(format_gain(row.figures[name]) for name in REWARDS)] for row in rows],
    )


def tuning_table(curves: dict[str, Curve]) -> str:
    """Tabulate the tuning cells: mean gain, worst reward and joint improvement at every learning rate."""
    rates = sorted({rate for curve in curves.values() for rate in curve})
    rows = [
        [f"`{method}`", *(format_tuning(curve[rate]) if rate in curve else "" for rate in rates)]
        for method, curve in curves.items()
    ]
    return markdown_table(["method", *(f"{rate:.2g}" for rate in rates)], rows)


def format_tuning(row: Summary) -> str:
    """Format mean gain, worst reward and joint improvement, after the gain of a specialist's own reward."""
    mean, worst, improved = (row.figures[name].mean for name in (COMPOSITE, WORST, IMPROVED))
    reward = SPECIALISTS.get(row.cell.method)
    own = f"{row.figures[reward].mean:+.2f}: " if reward else ""
    return f"{own}{mean:+.2f}, {worst:+.2f}, {improved:.0%}"


def format_gain(gain: Interval) -> str:
    """Format a gain with half of its interval, in bold if the interval excludes zero."""
    text = f"{gain.mean:+.2f} ± {(gain.high - gain.low) / 2:.2f}"
    return f"**{text}**" if gain.excludes_zero else text


def format_share(share: Interval) -> str:
    """Format a share of images with half of its interval, in percent."""
    return f"{100 * share.mean:.1f} ± {50 * (share.high - share.low):.1f} %"


def format_number(value: float, form: str) -> str:
    """Format a number; a figure that does not exist is left empty."""
    return "" if math.isnan(value) else format(value, form)


def markdown_table(heads: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in [heads, *rows]]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])
