"""Markdown tables of the study."""

from scripts.study.cells import REWARDS
from scripts.study.statistics import COMPOSITE, Cell, Interval


def gain_table(cells: list[Cell]) -> str:
    """Tabulate gains in standard deviations of the base; those whose interval excludes zero are bold."""
    heads = ["method", *REWARDS, COMPOSITE, "worst reward", "all five up"]
    heads += ["a reward pushed down", "between refreshes", "images/s"]
    rows = []
    for cell in cells:
        gains = [format_gain(cell.gains[reward]) for reward in (*REWARDS, COMPOSITE)]
        rows.append(
            [
                f"`{cell.name}`",
                *gains,
                format_gain(cell.worst),
                f"{cell.all_up} of {cell.seeds}",
                "" if cell.negative is None else f"{cell.negative:.0%} of {cell.measured}",
                "" if cell.between is None else f"{cell.between:.0%}",
                "" if cell.images_per_second is None else f"{cell.images_per_second:.0f}",
            ]
        )
    return markdown_table(heads, rows)


def format_gain(gain: Interval) -> str:
    """Format a gain with half of its interval, in bold if the interval excludes zero."""
    text = f"{gain.mean:+.2f} ± {(gain.high - gain.low) / 2:.2f}"
    return f"**{text}**" if gain.excludes_zero else text


def raw_table(cells: list[Cell], base: dict[str, float]) -> str:
    """Tabulate the base model's mean scores, and every method's differences from them."""
    rows = [["base", *(f"{base[reward]:.3f}" for reward in REWARDS)]]
    rows += [[f"`{cell.name}`", *(f"{cell.raw[reward]:+.3f}" for reward in REWARDS)] for cell in cells]
    return markdown_table(["method", *REWARDS], rows)


def markdown_table(heads: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in [heads, *rows]]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])
