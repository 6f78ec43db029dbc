"""Describe charts of two rewards in Vega-Lite's language: the path of a run, and the front of a sweep."""

from collections.abc import Sequence

import altair as alt

from marble_cli.report import charts
from marble_cli.report.charts import INK, Row


def trajectory(rows: Sequence[Row], runs: Sequence[str], description: str, axes: tuple[str, str]) -> Row:
    """Draw how two rewards moved together, a path per run: hollow at its start, large at its end.

    Args:
        rows: with run, step, x and y; the first of a run is its start, the last its end.
        runs: the labels of all runs of the report.
        description: the chart in words.
        axes: the names of the two rewards.
    """
    free = alt.Scale(zero=False, padding=10)
    steps = {run: [row["step"] for row in rows if row["run"] == run] for run in runs}
    marked = [
        {
            **row,
            "start": row["step"] == steps[row["run"]][0],
            "size": 100 if row["step"] == steps[row["run"]][-1] else 30,
        }
        for row in rows
    ]
    paths = charts.data().encode(
        x=alt.X("x:Q", title=axes[0]).scale(free).axis(tickCount=4, format=".6~r"),
        y=alt.Y("y:Q", title=axes[1]).scale(free).axis(tickCount=4, format=".6~r"),
        color=charts.by_run(runs),
    )
    tips = [
        alt.Tooltip("run:N"),
        alt.Tooltip("step:Q", format="d"),
        charts.number("x", axes[0]),
        charts.number("y", axes[1]),
    ]
    line = paths.mark_line(strokeWidth=1.8, aria=False).encode(order="step:Q", strokeDash=charts.dash(runs))
    points = paths.mark_point(strokeWidth=2).encode(
        size=alt.Size("size:Q").scale(None).legend(None), shape=charts.shape(runs), tooltip=tips,
        fill=alt.condition(alt.datum.start, alt.value("var(--card)"), charts.by_run(runs)),
    )  # fmt: skip
    return charts.finished(alt.layer(line, points), marked, description)


def front(rows: Sequence[Row], runs: Sequence[str], description: str, axes: tuple[str, str]) -> Row:
    """Draw runs as points with their intervals, and a line through those that are joined, which are filled.

    Args:
        rows: with run, cell (the text at the point), joined, x, x_low, x_high, y, y_low and y_high.
        runs: the labels of all runs of the report.
        description: the chart in words.
        axes: the names of the two rewards.
    """
    scale = alt.Scale(zero=False, padding=14)
    places = charts.data().encode(
        x=alt.X("x:Q", title=axes[0]).scale(scale).axis(tickCount=5, format=".6~r"),
        y=alt.Y("y:Q", title=axes[1]).scale(scale).axis(tickCount=5, format=".6~r"),
        color=charts.by_run(runs),
    )
    tips = [alt.Tooltip("cell:N")]
    for axis, name in zip("xy", axes, strict=True):
        ends = {"": name, "_low": f"{name}, from", "_high": f"{name}, to"}
        tips += [charts.number(f"{axis}{end}", title) for end, title in ends.items()]
    start = charts.data([{"at": 0}]).mark_rule(color=INK, opacity=0.4, strokeDash=[4, 3], aria=False)
    spans = places.mark_rule(strokeWidth=1.5, opacity=0.5, aria=False)
    line = places.transform_filter(alt.datum.joined).mark_line(opacity=0.6, aria=False)
    points = places.mark_point(size=90, strokeWidth=2, opacity=1).encode(
        shape=charts.shape(runs), tooltip=tips,
        fill=alt.condition(alt.datum.joined, charts.by_run(runs), alt.value("var(--card)")),
    )  # fmt: skip
    # Texts lean towards the middle, so that none leaves the chart.
    left = f"datum.x < {sum(row['x_low'] + row['x_high'] for row in rows) / (2 * len(rows))}"
    texts = places.mark_text(
        align=alt.expr(f"{left} ? 'left' : 'right'"), dx=alt.expr(f"{left} ? 8 : -8"), dy=-9,
        fontSize=11, aria=False,
    )  # fmt: skip
    layers = [
        start.encode(x="at:Q"),
        start.encode(y="at:Q"),
        spans.encode(x="x_low:Q", x2="x_high:Q"),
        spans.encode(y="y_low:Q", y2="y_high:Q"),
        line.encode(color=alt.value(INK), order="x:Q"),
        points,
        texts.encode(text="cell:N", color=alt.value(INK)),
    ]
    return charts.finished(alt.layer(*layers), rows, description, 320)
