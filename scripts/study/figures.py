"""Figures of the study."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from marble_cli.metrics.figures import COLORS, STYLE
from scripts.study.cells import REWARDS
from scripts.study.choose import Curve
from scripts.study.statistics import COMPOSITE, IMPROVED, WORST, Interval, Summary

OURS, OTHERS = COLORS[1], "0.35"
CORNERS = ((1, 1), (1, -1), (-1, 1), (-1, -1))  # of a point: right and up
LINES, MARKS = ("-", "--", ":", "-."), ("o", "s", "^", "v")  # for methods that share a colour


def draw_gains(rows: list[Summary], output: Path) -> None:
    """Draw every method's gain in every reward, with intervals."""
    with plt.rc_context(STYLE):
        columns = (*REWARDS, COMPOSITE)
        figure, axes = plt.subplots(1, len(columns), figsize=(12, 0.3 * len(rows) + 1.2), sharey=True)
        places = np.arange(len(rows))[::-1]
        for panel, column, color in zip(axes, columns, COLORS, strict=False):
            for place, row in zip(places, rows, strict=True):
                gain = row.figures[column]
                panel.plot([gain.low, gain.high], [place, place], color=color, lw=1.5, alpha=0.6)
                panel.plot(gain.mean, place, "o", color=color, ms=4.5)
            panel.axvline(0, color="0.6", lw=0.8)
            panel.set_title(column, color=color)
        axes[0].set_yticks(places, [row.cell.method for row in rows])
        figure.supxlabel("gain over the base, in its standard deviations (95 % interval)", fontsize=9)
        figure.tight_layout()
        figure.savefig(output)
        plt.close(figure)


def draw_outcomes(rows: list[Summary], output: Path) -> None:
    """Draw the worst reward and joint improvement against the mean gain: up and to the right is better."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(12, 5))
        panels[0].axhline(0, color="0.7", lw=0.8)
        panels[0].set_ylabel("gain of the worst reward")
        panels[1].set_ylabel("images that improved jointly, %")
        for panel, figure_name, scale in ((panels[0], WORST, 1), (panels[1], IMPROVED, 100)):
            for row in rows:
                color = color_of(row)
                x, y = row.figures[COMPOSITE], scaled(row.figures[figure_name], scale)
                panel.plot([x.low, x.high], [y.mean, y.mean], color=color, lw=1, alpha=0.4)
                panel.plot([x.mean, x.mean], [y.low, y.high], color=color, lw=1, alpha=0.4)
                panel.plot(x.mean, y.mean, "o", color=color, ms=5)
            panel.set_xlabel("mean gain of the five rewards (base standard deviations)")
        figure.tight_layout()
        for panel, figure_name, scale in ((panels[0], WORST, 1), (panels[1], IMPROVED, 100)):
            name_points(panel, rows, figure_name, scale)
        figure.savefig(output)
        plt.close(figure)


def name_points(panel: Axes, rows: list[Summary], figure_name: str, scale: float) -> None:
    """Write each method's name at that corner of its point where it covers the fewest points and names."""
    points = [(row.figures[COMPOSITE].mean, scale * row.figures[figure_name].mean) for row in rows]
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in panel.transData.transform(points)]
    for row, point in zip(rows, points, strict=True):
        notes = [
            panel.annotate(
                row.cell.method,
                point,
                xytext=(5 * right, 4 * up),
                textcoords="offset points",
                horizontalalignment="left" if right > 0 else "right",
                verticalalignment="bottom" if up > 0 else "top",
                fontsize=7,
                color=color_of(row),
            )
            for right, up in CORNERS
        ]
        best = min(notes, key=lambda note: note.get_window_extent().count_overlaps(taken))
        taken.append(best.get_window_extent())
        for note in notes:
            if note is not best:
                note.remove()


def color_of(row: Summary) -> str:
    """Return the colour of a method."""
    return OURS if row.cell.method.startswith("marble") else OTHERS


def draw_rates(curves: dict[str, Curve], output: Path) -> None:
    """Draw mean gain, worst reward and joint improvement of the tuning cells over the learning rate."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 3, figsize=(13, 4))
        titles = {COMPOSITE: "mean gain", WORST: "worst reward", IMPROVED: "improved jointly, %"}
        for panel, (name, title) in zip(panels, titles.items(), strict=True):
            for place, (method, curve) in enumerate(curves.items()):
                rates = sorted(curve)
                values = [curve[rate].figures[name].mean * (100 if name == IMPROVED else 1) for rate in rates]
                again, number = divmod(place, len(COLORS))
                look = {"linestyle": LINES[again], "marker": MARKS[again], "color": COLORS[number]}
                panel.plot(rates, values, ms=3.5, label=method, **look)
            panel.set_xscale("log", base=2)
            ticks = sorted({rate for curve in curves.values() for rate in curve})
            panel.set_xticks(ticks, [f"{rate:.2g}" for rate in ticks])
            panel.set_title(title)
            panel.set_xlabel("learning rate")
        handles, names = panels[0].get_legend_handles_labels()
        figure.tight_layout(rect=(0, 0.09, 1, 1))
        figure.legend(handles, names, loc="lower center", ncols=8, frameon=False, fontsize=7)
        figure.savefig(output)
        plt.close(figure)


def scaled(value: Interval, scale: float) -> Interval:
    """Return an interval in another unit."""
    return Interval(scale * value.mean, scale * value.low, scale * value.high)
