"""Describe charts in Vega-Lite's language: their style, and curves, changes, matrices and bars.

Colours are variables of the style sheet, so that charts follow the page's colours, dark or light. Runs differ
in shape and dash besides, for readers who cannot tell colours apart.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import altair as alt

Row = dict[str, Any]

COLORS = 7  # of the style sheet; further runs repeat them with other shapes
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "wedge")
DASHES = ([1, 0], [6, 2], [2, 2], [8, 2, 2, 2])
INK = "currentColor"
FEW = 40  # points of a curve that are drawn one by one
OPPOSED, NEUTRAL, ALIGNED = "#D55E00", "#F7F7F7", "#0072B2"  # of cosines
HEIGHT = 180  # pixels
ROWS = "rows"  # the name of a chart's data


def color(index: int) -> str:
    """Return the colour of a run, by its place in the report."""
    return f"var(--run-{index % COLORS})"


def by_run(runs: Sequence[str]) -> alt.Color:
    """Colour marks by the run, in the order of the report."""
    colors = [color(index) for index in range(len(runs))]
    return alt.Color("run:N").scale(domain=list(runs), range=colors).legend(None)


def shape(runs: Sequence[str]) -> alt.Shape:
    """Give each run a shape of its own."""
    shapes = [SHAPES[index % len(SHAPES)] for index in range(len(runs))]
    return alt.Shape("run:N").scale(domain=list(runs), range=shapes).legend(None)


def dash(runs: Sequence[str]) -> alt.StrokeDash:
    """Dash the lines of runs that share a colour."""
    dashes = [DASHES[index // COLORS % len(DASHES)] for index in range(len(runs))]
    return alt.StrokeDash("run:N").scale(domain=list(runs), range=dashes).legend(None)


def data(rows: Sequence[Row] = ()) -> alt.Chart:
    """Return a chart of these few rows; without rows, of those that the finished chart is given."""
    return alt.Chart(alt.InlineData(values=list(rows)) if rows else alt.NamedData(name=ROWS))


def number(field: str, title: str) -> alt.Tooltip:
    """Return a number in the box at the pointer."""
    return alt.Tooltip(f"{field}:Q", title=title, format=".4~g")


def finished(
    chart: alt.Chart | alt.LayerChart | alt.FacetChart,
    rows: Sequence[Row],
    description: str,
    height: int = HEIGHT,
) -> Row:
    """Return the JSON of a chart in the page's style, with its rows; Altair checks neither."""
    styled = (
        chart.properties(
            width="container", height=height, description=description, background="transparent",
            autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
        )
        .configure(font="system-ui, sans-serif")
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=INK, titleColor=INK, tickColor=INK, domainColor=INK, gridColor=INK, gridOpacity=0.15,
            labelFontSize=11, titleFontSize=11, titleFontWeight="normal", labelLimit=130,
        )
        .configure_legend(labelColor=INK, titleColor=INK, labelFontSize=11, orient="bottom", title=None)
    )  # fmt: skip
    spec: Row = styled.to_dict(validate=False)
    del spec["$schema"]  # an address that nothing has to reach
    return _filled(spec, rows, description)


def _filled(spec: Row, rows: Sequence[Row], description: str) -> Row:
    """Return the chart with these rows and words, without a change to `spec`."""
    return {**spec, "description": description, "datasets": {**spec.get("datasets", {}), ROWS: list(rows)}}


def curve(
    rows: Sequence[Row],
    runs: Sequence[str],
    description: str,
    *,
    title: str,
    domain: tuple[float, float] | None = None,
    reference: float | None = None,
    more: Sequence[tuple[str, str]] = (),
) -> Row:
    """Draw a value over the steps, a line per run.

    Args:
        rows: with run, step and value; and low and high where there is an interval.
        runs: the labels of all runs of the report, whose order chooses the colours.
        description: the chart in words.
        title: of the vertical axis.
        domain: of the vertical axis; None for that of the values.
        reference: a value to draw a horizontal line at.
        more: further fields of the rows with their titles, for the box at the pointer.
    """
    counts = Counter(row["run"] for row in rows)
    few, band = max(counts.values()) <= FEW, any("low" in row for row in rows)
    return _filled(_curve(tuple(runs), title, domain, reference, tuple(more), few, band), rows, description)


@lru_cache(maxsize=32)
def _curve(
    runs: tuple[str, ...],
    title: str,
    domain: tuple[float, float] | None,
    reference: float | None,
    more: tuple[tuple[str, str], ...],
    few: bool,
    band: bool,
) -> Row:
    """Draw what the charts of several rewards share, which Altair takes 50 ms for."""
    scale = alt.Scale(zero=False) if domain is None else alt.Scale(domain=list(domain))
    x = alt.X("step:Q", title="step").axis(format="d", tickMinStep=1, tickCount=5, grid=False)
    y = alt.Y("value:Q", title=title).scale(scale).axis(tickCount=5, format=".6~r")
    lines = data().encode(x=x, y=y, color=by_run(runs))
    hover = alt.selection_point(nearest=True, on="pointerover", clear="pointerout", empty=False, name="hover")
    tips = [alt.Tooltip("run:N"), alt.Tooltip("step:Q", format="d"), number("value", title)]
    tips += [number("low", "from"), number("high", "to")] if band else []
    tips += [number(field, words) for field, words in more]
    layers = []
    if reference is not None:
        rule = data([{"at": reference}]).mark_rule(color=INK, opacity=0.5, strokeDash=[4, 3], aria=False)
        layers.append(rule.encode(y="at:Q"))
    if band:
        areas = lines.mark_area(opacity=0.2, aria=False).encode(y=alt.Y("low:Q", title=title), y2="high:Q")
        layers.append(areas)
    layers.append(lines.mark_line(strokeWidth=1.8, aria=False).encode(strokeDash=dash(runs)))
    points = lines.mark_point(filled=True, size=45).encode(
        shape=shape(runs),
        tooltip=tips,
        opacity=alt.condition(hover, alt.value(1), alt.value(0.9 if few else 0)),
    )
    layers.append(points.add_params(hover))
    return finished(alt.layer(*layers), (), "")


def changes(rows: Sequence[Row], runs: Sequence[str], description: str, title: str) -> Row:
    """Draw changes with their intervals: a group per reward, a mark per run.

    Args:
        rows: with run, reward, value, low and high; and raw, the change in the reward's own units.
        runs: the labels of all runs of the report.
        description: the chart in words.
        title: of the horizontal axis.
    """
    order = list(dict.fromkeys(row["reward"] for row in rows))
    y = alt.Y("reward:N", title=None, sort=order).axis(grid=False, ticks=False, domain=False)
    marks = data().encode(y=y, color=by_run(runs))
    if len(runs) > 1:
        marks = marks.encode(yOffset=alt.YOffset("run:N").scale(domain=list(runs)))
    tips = [
        alt.Tooltip("run:N"), alt.Tooltip("reward:N"), number("value", title), number("low", "from"),
        number("high", "to"), number("raw", "in its own units"),
    ]  # fmt: skip
    zero = data([{"at": 0}]).mark_rule(color=INK, opacity=0.5, strokeDash=[4, 3], aria=False).encode(x="at:Q")
    spans = marks.mark_rule(strokeWidth=2.5, aria=False).encode(
        x=alt.X("low:Q", title=title).axis(format=".6~r", tickCount=5), x2="high:Q", tooltip=tips
    )
    points = marks.mark_point(filled=True, size=80).encode(x="value:Q", shape=shape(runs), tooltip=tips)
    height = len(order) * max(28, 14 * len(runs) + 10)
    return finished(alt.layer(zero, spans, points), rows, description, height)


def matrix(rows: Sequence[Row], names: Sequence[str], description: str) -> Row:
    """Draw the mean cosines between the rewards' gradients, below the diagonal.

    Args:
        rows: with first, second, value, and below, the share of refreshes with a negative cosine.
        names: the rewards in the run's order.
        description: the chart in words.
    """
    limit = max(0.2, *(abs(row["value"]) for row in rows))
    cells = data().encode(
        x=alt.X("first:N", title=None, sort=list(names[:-1])).axis(labelAngle=-35, domain=False, ticks=False),
        y=alt.Y("second:N", title=None, sort=list(names[1:])).axis(domain=False, ticks=False, grid=False),
    )
    tips = [
        alt.Tooltip("first:N"), alt.Tooltip("second:N"), number("value", "mean cosine"),
        alt.Tooltip("below:Q", title="below 0", format=".0%"),
    ]  # fmt: skip
    ink = alt.condition(abs(alt.datum.value) > 0.6 * limit, alt.value("white"), alt.value("#222222"))
    texts = cells.mark_text(fontSize=11, aria=False).encode(
        text=alt.Text("value:Q", format="+.2f"), color=ink, tooltip=tips
    )
    squares = cells.mark_rect(stroke="var(--card)", strokeWidth=2).encode(color=_cosine(limit), tooltip=tips)
    return finished(alt.layer(squares, texts), rows, description, 34 * (len(names) - 1))


def strips(rows: Sequence[Row], pairs: Sequence[str], description: str) -> Row:
    """Draw the cosine of each pair of rewards over the refreshes, as strips of colour.

    Args:
        rows: with pair, step and value.
        pairs: the names of the pairs, in order.
        description: the chart in words.
    """
    limit = max(0.2, *(abs(row["value"]) for row in rows))
    tips = [alt.Tooltip("pair:N"), alt.Tooltip("step:O"), number("value", "cosine")]
    cells = data().encode(
        x=alt.X("step:O", title="refresh at step").axis(
            labelAngle=0, labelOverlap=True, labelSeparation=8, ticks=False, domain=False
        ),
        y=alt.Y("pair:N", title=None, sort=list(pairs)).axis(
            grid=False, ticks=False, domain=False, labelLimit=170
        ),
        color=_cosine(limit),
        tooltip=tips,
    )
    return finished(cells.mark_rect(), rows, description, 22 * len(pairs))


def _cosine(limit: float) -> alt.Color:
    scale = alt.Scale(domain=[-limit, 0, limit], range=[OPPOSED, NEUTRAL, ALIGNED], interpolate="lab")
    return alt.Color("value:Q").scale(scale).legend(title="cosine", format="+.1f", gradientLength=140)


def bars(rows: Sequence[Row], parts: Sequence[str], description: str, title: str) -> Row:
    """Draw what the whole of each run is made of, as a bar per run.

    Args:
        rows: with run, part, value and share.
        parts: the names of the parts, in order.
        description: the chart in words.
        title: of the horizontal axis.
    """
    order = list(dict.fromkeys(row["run"] for row in rows))
    tips = [
        alt.Tooltip("run:N"), alt.Tooltip("part:N"), number("value", title),
        alt.Tooltip("share:Q", format=".0%"),
    ]  # fmt: skip
    colors = [f"var(--part-{index})" for index in range(len(parts))]
    chart = data().mark_bar(stroke="var(--card)", strokeWidth=1).encode(
        x=alt.X("value:Q", title=title).axis(tickCount=5, format=".6~r"),
        y=alt.Y("run:N", title=None, sort=order).axis(grid=False, ticks=False, domain=False),
        color=alt.Color("part:N").scale(domain=list(parts), range=colors).legend(title=None),
        order=alt.Order("place:Q"),
        tooltip=tips,
    )  # fmt: skip
    return finished(chart, rows, description, 34 * len(order))
