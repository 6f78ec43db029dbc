"""Figures of the study."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from marble_cli.metrics.figures import COLORS, STYLE
from scripts.study.cells import METHODS, REWARDS
from scripts.study.statistics import COMPOSITE, Cell

SPECIALISTS = tuple(name for name in METHODS if name.startswith("only_"))


def draw_gains(cells: list[Cell], output: Path) -> None:
    """Draw every method's gain in every reward, with intervals."""
    with plt.rc_context(STYLE):
        columns = (*REWARDS, COMPOSITE)
        figure, axes = plt.subplots(1, len(columns), figsize=(12, 0.3 * len(cells) + 1.2), sharey=True)
        places = np.arange(len(cells))[::-1]
        for panel, column, color in zip(axes, columns, COLORS, strict=False):
            for place, cell in zip(places, cells, strict=True):
                gain = cell.gains[column]
                panel.plot([gain.low, gain.high], [place, place], color=color, lw=1.5, alpha=0.6)
                panel.plot(gain.mean, place, "o", color=color, ms=4.5)
            panel.axvline(0, color="0.6", lw=0.8)
            panel.set_title(column, color=color)
        axes[0].set_yticks(places, [cell.name for cell in cells])
        figure.supxlabel("gain over the base, in its standard deviations (95 % interval)", fontsize=9)
        figure.tight_layout()
        figure.savefig(output)
        plt.close(figure)


def draw_balance(cells: list[Cell], output: Path) -> None:
    """Draw the worst reward's gain against the mean gain: up and to the right is better."""
    with plt.rc_context(STYLE):
        figure, panel = plt.subplots(figsize=(6.5, 5))
        labelled: list[tuple[float, float]] = []
        for cell in cells:
            color = COLORS[1] if cell.name.startswith("marble") else "0.35"
            x, y = cell.gains[COMPOSITE], cell.worst
            panel.plot([x.low, x.high], [y.mean, y.mean], color=color, lw=1, alpha=0.4)
            panel.plot([x.mean, x.mean], [y.low, y.high], color=color, lw=1, alpha=0.4)
            panel.plot(x.mean, y.mean, "o", color=color, ms=5)
            # A label too close to another moves to the other side of its point.
            crowded = any(abs(x.mean - a) < 0.012 and abs(y.mean - b) < 0.012 for a, b in labelled)
            labelled.append((x.mean, y.mean))
            panel.annotate(
                cell.name,
                (x.mean, y.mean),
                xytext=(-5, -5) if crowded else (5, 4),
                textcoords="offset points",
                ha="right" if crowded else "left",
                va="top" if crowded else "bottom",
                fontsize=7,
                color=color,
            )
        panel.axhline(0, color="0.7", lw=0.8)
        panel.set_xlabel("mean gain of the five rewards (base standard deviations)")
        panel.set_ylabel("gain of the worst reward")
        figure.tight_layout()
        figure.savefig(output)
        plt.close(figure)


def draw_specialists(cells: dict[str, Cell], compared: Sequence[str], output: Path) -> None:
    """Draw what training on one reward alone gains, beside what methods gain that train on all of them."""
    with plt.rc_context(STYLE):
        figure, panel = plt.subplots(figsize=(8, 3.4))
        width = 0.8 / (len(compared) + 1)
        for place, name in enumerate(["alone", *compared]):
            gains = [cells[f"only_{reward}" if name == "alone" else name].gains[reward] for reward in REWARDS]
            panel.bar(
                np.arange(len(REWARDS)) + (place - len(compared) / 2) * width,
                [gain.mean for gain in gains],
                width * 0.9,
                yerr=[[gain.mean - gain.low for gain in gains], [gain.high - gain.mean for gain in gains]],
                label=name,
                color=COLORS[place],
                error_kw={"lw": 0.8},
            )
        panel.set_xticks(range(len(REWARDS)), REWARDS)
        panel.axhline(0, color="0.4", lw=0.8)
        panel.set_ylabel("gain (base standard deviations)")
        panel.legend(frameon=False, fontsize=8)
        figure.tight_layout()
        figure.savefig(output)
        plt.close(figure)
