"""Draw what a run's balance did: conflicts, shares, cosines and Pareto moves."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D

from marble_cli.explain.analysis import Explanation
from marble_cli.explain.pareto import chosen_pairs, improvements, trajectory
from marble_cli.metrics.captions import caption
from marble_cli.metrics.figures import COLORS, styled
from marble_cli.metrics.history import History, series
from marble_cli.wording import percent

RESOLUTION = 200  # dots per inch
# How many of two rewards a move between evaluations improved: colour and label.
MOVES = {2: (COLORS[0], "both improve"), 1: ("#A0A0A0", "one improves"), 0: (COLORS[1], "none improves")}


class MissingError(Exception):
    """The run did not record the figures of a picture; the message says which."""


def draw(history: History, found: Explanation, folder: Path) -> tuple[list[Path], list[str]]:
    """Draw every picture whose figures the run recorded.

    Args:
        history: the run's metrics.
        found: their summary.
        folder: of the PNG files; made if it does not exist.

    Returns:
        The files, and the pictures that were not drawn, each with its reason.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn, left_out = [], []
    pictures: dict[str, Callable[[], Any]] = {
        "conflict": lambda: conflict(found),
        "shares": lambda: shares(history),
        "cosines": lambda: cosines(history),
        "pareto": lambda: pareto(history, found),
    }
    for name, picture in pictures.items():
        path = folder / f"{name}.png"
        try:
            with styled(history.rewards):
                picture().savefig(path, dpi=RESOLUTION, bbox_inches="tight")
        # MissingError, or any error of matplotlib: the tables do not need the picture.
        except Exception as reason:
            path.unlink(missing_ok=True)  # an earlier call's file would be taken for this one's
            why = str(reason) if isinstance(reason, MissingError) else f"{type(reason).__name__}: {reason}"
            left_out.append(f"{path.name}, {why}")
        else:
            drawn.append(path)
    return drawn, left_out


def conflict(found: Explanation) -> Any:
    """Draw the mean cosines between the rewards' gradients, with the share of refreshes below 0."""
    if not found.pairs:
        raise MissingError("no pairwise cosines of gradients are recorded")
    names = [reward.name for reward in found.rewards]
    means = np.full((len(names), len(names)), np.nan)
    side = 1.6 + 0.85 * len(names)
    figure, panel = plt.subplots(figsize=(side + 0.6, 0.8 * side), layout="constrained")
    limit = max(0.2, *(abs(pair.cosine.mean) for pair in found.pairs))
    for pair in found.pairs:
        column, row = names.index(pair.first), names.index(pair.second)
        means[row, column] = mean = pair.cosine.mean
        color = "white" if abs(mean) > 0.6 * limit else "black"
        panel.text(column, row - 0.08, f"{mean:+.2f}", color=color, ha="center", va="center")
        below = f"{percent(pair.cosine.negative)} < 0"
        panel.text(column, row + 0.18, below, color=color, ha="center", va="center", fontsize=6.5)
    extent = (-0.5, len(names) - 1.5, len(names) - 0.5, 0.5)
    image = panel.imshow(means[1:, :-1], cmap="RdBu", vmin=-limit, vmax=limit, extent=extent)
    panel.set_xticks(range(len(names) - 1), [_label(name) for name in names[:-1]], rotation=30, ha="right")
    panel.set_yticks(range(1, len(names)), [_label(name) for name in names[1:]])
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    panel.set_title("mean cosine between gradients")
    panel.set_xlabel("below each mean: how often the cosine is negative", fontsize=7, loc="left")
    bar = figure.colorbar(image, shrink=0.8)
    bar.outline.set_visible(False)
    return figure


def _label(name: str) -> str:
    """Break a reward's name into lines that fit between its neighbours'."""
    return caption(name, 18, 3)


def shares(history: History) -> Any:
    """Draw each reward's share over the steps: dots for refreshes, a line for the smoothed cache."""
    known = [
        name for name in history.rewards if history.fresh_shares(name)[0] or history.cached_shares(name)[0]
    ]
    if not known:
        raise MissingError("no shares are recorded")

    def panel(axes: Any, name: str, color: str) -> None:
        axes.plot(
            *history.fresh_shares(name), "o", color=color, ms=3, alpha=0.6, mew=0, label="solved at a refresh"
        )
        axes.plot(
            *history.cached_shares(name), color=color, lw=1.5, drawstyle="steps-post", label="smoothed cache"
        )
        axes.axhline(
            1 / (len(history.rewards) - len(history.guards)),
            color="#A0A0A0",
            lw=0.8,
            ls=":",
            label="equal share",
        )

    return _by_reward(history, known, panel, "share alpha")


def cosines(history: History) -> Any:
    """Draw the cosine of the applied direction with each gradient; below zero it pushed the reward down."""
    known = [name for name in history.rewards if series(history.train, f"balance/cosine/{name}")[0]]
    if not known:
        raise MissingError("no cosines with the applied direction are recorded")

    def panel(axes: Any, name: str, color: str) -> None:
        steps, values = series(history.train, f"balance/cosine/{name}")
        below = np.where(np.array(values) < 0, values, np.nan)
        axes.axhline(0, color="black", lw=0.8)
        axes.plot(steps, values, color=color, lw=1, marker="o", ms=3, mew=0, label="measured")
        axes.plot(steps, below, "v", color="black", ms=4, mew=0, label="pushed down")

    return _by_reward(history, known, panel, "cosine with the direction")


def _by_reward(
    history: History, names: Sequence[str], draw_panel: Callable[[Any, str, str], None], label: str
) -> Any:
    """Draw one panel per reward, all with the same axes."""
    figure, panels = _grid(len(names), sharex=True, sharey=True)
    for name, panel in zip(names, panels, strict=True):
        color = COLORS[history.rewards.index(name) % len(COLORS)]
        draw_panel(panel, name, color)
        panel.set_title(_label(name), color=color)
        panel.tick_params(labelbottom=True)
        panel.set_xlabel("step")
    panels[0].set_ylabel(label)
    handles, labels = panels[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    for handle in legend.legend_handles:
        handle.set_color("black")  # the legend is of every panel
    return figure


def _grid(count: int, **shared: Any) -> tuple[Any, list[Any]]:
    """Make a figure of a page's width with `count` panels; the rest of its grid stays blank."""
    columns = min(count, 3 if count <= 6 else 4)
    rows = -(-count // columns)
    size = (max(3.6, 7.2 * columns / max(3, columns)), 2.0 * rows + 0.4)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **shared)
    panels = list(axes.flat)
    for panel in panels[count:]:
        panel.axis("off")
    return figure, panels[:count]


def pareto(history: History, found: Explanation) -> Any:
    """Draw the held-out means of every two rewards, an arrow from each evaluation to the next."""
    if len(history.rewards) < 2:
        raise MissingError("a single reward has none to be drawn against")
    pairs, title = chosen_pairs(history.rewards, found.pairs)
    paths = {pair: points for pair in pairs if len(points := trajectory(history, *pair)[1]) > 1}
    if not paths:
        raise MissingError("fewer than two evaluations on held-out prompts are recorded")
    figure, panels = _grid(len(paths))
    for ((first, second), points), panel in zip(paths.items(), panels, strict=True):
        _trajectory(panel, points)
        panel.locator_params(axis="x", nbins=3)
        panel.locator_params(axis="y", nbins=5)
        panel.tick_params(labelsize=7)
        panel.set_xlabel(_label(first))
        panel.set_ylabel(_label(second))
    marks = [Line2D([], [], color=color, lw=2, label=label) for color, label in MOVES.values()]
    marks.append(Line2D([], [], color="black", marker="o", mfc="white", ls="", ms=5, label="start"))
    marks.append(Line2D([], [], color="black", marker="o", ls="", ms=5, label="end"))
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False, title=title)
    return figure


def _trajectory(panel: Any, points: np.ndarray) -> None:
    """Draw arrows through `points` [E, 2], coloured by how many of the two coordinates rose."""
    improved = improvements(points)
    panel.scatter(*points.T, s=4, color="#A0A0A0", zorder=1)  # arrows do not set the axes' limits
    for start, end, number in zip(points, points[1:], improved, strict=False):
        arrow = {"arrowstyle": "-|>", "color": MOVES[number][0], "lw": 1.2, "mutation_scale": 7}
        panel.annotate("", end, start, arrowprops={**arrow, "shrinkA": 0, "shrinkB": 0})
    panel.plot(*points[0], "o", color="black", mfc="white", ms=5, zorder=3)
    panel.plot(*points[-1], "o", color="black", ms=5, zorder=3)
    counts = [f"{label.split()[0]} {(improved == number).sum()}" for number, (_, label) in MOVES.items()]
    panel.set_title(", ".join(counts), fontsize=7, weight="normal")
