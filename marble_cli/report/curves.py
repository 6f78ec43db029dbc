"""Draw curves over the steps: rewards on held-out prompts and in training, and moves in pairs of rewards."""

from collections.abc import Callable, Sequence
from typing import Any

from marble_cli.explain.pareto import chosen_pairs, improvements, trajectory
from marble_cli.report import charts, planes
from marble_cli.report.elements import Chart, Group, Table, interval, number, rounded, some
from marble_cli.report.outcome import NORMAL, reward_names
from marble_cli.report.reading import Run

Point = dict[str, Any]
Points = Callable[[Run, str], list[Point]]

POINTS = 3000  # of one group of charts at most
FEWEST = 30  # points of one curve that are kept in any case


def curve_chart(
    title: str, points: Sequence[Point], runs: Sequence[Run], axis: str, panels: int = 1, **options: Any
) -> Chart | None:
    """Draw a value over the steps, a curve per run; None if there is no point.

    Args:
        title: of the chart.
        points: with run, step and value, and low and high where there is an interval; in the order of steps.
        runs: all runs of the report.
        axis: the title of the vertical axis.
        panels: the number of charts that share the bound on points.
        options: of `charts.curve`.
    """
    if not points:
        return None
    most = max(FEWEST, POINTS // (panels * len(runs)))
    curves = [some([p for p in points if p["run"] == run.label], most) for run in runs]
    kept = [{key: rounded(value) for key, value in point.items()} for curve in curves for point in curve]
    summary = "; ".join(_ends(curve, len(runs) > 1) for curve in curves if curve)
    spec = charts.curve(kept, [run.label for run in runs], f"{title}. {summary}", title=axis, **options)
    banded = any("low" in point for point in kept)
    rows = [
        [
            str(point["step"]),
            point["run"],
            number(point["value"]),
            *([interval(point.get("low"), point.get("high"), "g")] if banded else []),
        ]
        for curve in curves
        for point in some(curve)
    ]
    head = ["step", "run", axis, *(["95 % interval"] if banded else [])]
    return Chart(title, summary, spec, Table(f"{title}, {axis}", head, rows))


def _ends(curve: Sequence[Point], several: bool) -> str:
    """Say where a curve begins and ends."""
    first, last = curve[0], curve[-1]
    values = " → ".join(number(point["value"]) for point in (first, last)[: len(curve)])
    if several:
        return f"{first['run']} {values}"
    steps = " to ".join(str(point["step"]) for point in (first, last)[: len(curve)])
    return f"{values}, step {steps}" if len(curve) == 1 else f"{values}, steps {steps}"


def panels(
    group: Group,
    gone: str,
    runs: Sequence[Run],
    names: Sequence[str],
    points: Points,
    axis: str,
    **options: Any,
) -> Group:
    """Draw a chart per reward.

    Args:
        group: the title and the text.
        gone: the text if there is no chart: why.
        runs: all runs of the report.
        names: of the rewards.
        points: returns the points of a run and a reward.
        axis: the title of the vertical axis.
        options: of `charts.curve`.
    """
    drawn = [
        chart
        for name in names
        if (found := [point for run in runs for point in points(run, name)])
        and (chart := curve_chart(name, found, runs, axis, len(names), **options))
    ]
    return Group(group.title, group.text if drawn else gone, drawn)


def held_out_curves(runs: Sequence[Run]) -> Group:
    """Draw each reward's mean on the held-out prompts, with the interval of its change since the start."""
    text = (
        "Mean over the held-out prompts: the same prompts from the same noise at every evaluation. The band "
        "is the 95 % interval of the change since the first evaluation, image by image; where it leaves the "
        "start, the change is more than chance."
    )
    gone = "No evaluation is recorded: trainer.eval_every is 0, or the first one is still to come."
    return panels(
        Group("Rewards on held-out prompts", text), gone, runs, reward_names(runs), _held_out, "mean"
    )


def _held_out(run: Run, name: str) -> list[Point]:
    points = []
    for row in run.history.held_out:
        keys = ("mean", "change", "change_low", "change_high")
        mean, change, low, high = (row.get(f"reward/{name}/{key}") for key in keys)
        if mean is None:
            continue
        point = {"run": run.label, "step": row["step"], "value": mean}
        if change is not None and low is not None and high is not None:
            point |= {"low": mean - change + low, "high": mean - change + high}
        points.append(point)
    return points


def training_curves(runs: Sequence[Run]) -> Group:
    """Draw each reward's mean over the images of a step, with its interval."""
    text = (
        "Mean over the images of a step, on other prompts at every step. The band is its 95 % interval, "
        "taking images as independent."
    )
    names = reward_names(runs, watched=False)
    gone = "No training step is finished yet."
    return panels(Group("Rewards in training", text), gone, runs, names, _training, "mean")


def _training(run: Run, name: str) -> list[Point]:
    points = []
    for row in run.history.train:
        mean, std, n = (row.get(f"reward/{name}/{key}") for key in ("mean", "std", "applicable"))
        if mean is None:
            continue
        point = {"run": run.label, "step": row["step"], "value": mean}
        if std is not None and n:
            half = NORMAL * std / n**0.5
            point |= {"low": mean - half, "high": mean + half}
        points.append(point)
    return points


def pareto_moves(runs: Sequence[Run]) -> Group:
    """Draw how the held-out means of every two rewards moved together."""
    names = reward_names(runs, watched=False)
    opposed = [pair for run in runs for pair in run.found.pairs] if len(runs) == 1 else []
    pairs, which = chosen_pairs(names, opposed)
    drawn = [chart for pair in pairs if (chart := _moves(runs, *pair))]
    text = (
        "A path per run through its evaluations, from the hollow mark to the large one. Up and to the right "
        "is better in both. The numbers say how many moves from one evaluation to the next improved both "
        "rewards, one, and none."
    )
    if which:
        text += f" These are {which}."
    if len(names) < 2:
        return Group("Pareto moves", "A single reward has none to be drawn against.", [])
    gone = "Fewer than two evaluations on held-out prompts are recorded."
    return Group("Pareto moves", text if drawn else gone, drawn)


def _moves(runs: Sequence[Run], first: str, second: str) -> Chart | None:
    rows, said = [], []
    for run in runs:
        steps, points = trajectory(run.history, first, second)
        if len(steps) < 2:
            continue
        counts = improvements(points)
        both, one, none = (int((counts == number_of).sum()) for number_of in (2, 1, 0))
        label = f"{run.label} " if len(runs) > 1 else ""
        said.append(f"{label}{both} both, {one} one, {none} none")
        rows += [
            {"run": run.label, "step": step, "x": rounded(x), "y": rounded(y)}
            for step, (x, y) in zip(steps, points.tolist(), strict=True)
        ]
    if not rows:
        return None
    title, summary = f"{first} and {second}", "moves that improved: " + "; ".join(said)
    spec = planes.trajectory(rows, [run.label for run in runs], f"{title}. {summary}", (first, second))
    cells = [[str(row["step"]), row["run"], number(row["x"]), number(row["y"])] for row in some(rows)]
    return Chart(title, summary, spec, Table(title, ["step", "run", first, second], cells))
