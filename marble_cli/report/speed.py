"""Show how fast the runs were, and what their time went into."""

from collections.abc import Sequence
from statistics import median

from marble_cli.metrics.history import series
from marble_cli.report import charts
from marble_cli.report.curves import curve_chart
from marble_cli.report.elements import Chart, Group, Table, number, rounded
from marble_cli.report.reading import Run
from marble_cli.wording import percent

PARTS = ("rollout", "reward", "train")
RATE = "throughput/images_per_second"


def speed(runs: Sequence[Run]) -> Group:
    """Draw the split of a median step, and the images per second over the steps."""
    timed = [run for run in runs if series(run.history.train, "time/step")[0]]
    if not timed:
        return Group("Time per step", "No training step is finished yet.", [])
    points = [
        {"run": run.label, "step": step, "value": value}
        for run in timed
        for step, value in zip(*series(run.history.train, RATE), strict=True)
    ]
    curve = curve_chart("Images per second", points, runs, "images per second")
    text = (
        "Medians over the steps. Scoring runs while images are drawn; reward is the time that a step then "
        "still waits for scores. Evaluations and checkpoints are not counted."
    )
    drawn = [_split(timed), *([curve] if curve else [])]
    return Group("Time per step", text, drawn, [_table(timed)])


def _medians(run: Run) -> dict[str, float]:
    known = {part: series(run.history.train, f"time/{part}")[1] for part in PARTS}
    return {part: median(values) for part, values in known.items() if values}


def _split(runs: Sequence[Run]) -> Chart:
    rows, said = [], []
    for run in runs:
        medians = _medians(run)
        whole = sum(medians.values()) or 1.0
        rows += [
            {
                "run": run.label, "part": part, "place": place, "value": rounded(medians[part]),
                "share": rounded(medians[part] / whole),
            }
            for place, part in enumerate(PARTS)
            if part in medians
        ]  # fmt: skip
        shares = ", ".join(f"{part} {percent(value / whole)}" for part, value in medians.items())
        said.append(f"{run.label}: {shares}" if len(runs) > 1 else shares)
    title, summary = "Where a step's time goes", "; ".join(said)
    spec = charts.bars(rows, PARTS, f"{title}. {summary}", "seconds per step")
    cells = [[row["run"], row["part"], number(row["value"]), percent(row["share"])] for row in rows]
    return Chart(title, summary, spec, Table(title, ["run", "part", "seconds", "share"], cells))


def _table(runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        steps, rates = series(run.history.train, "time/step")[1], series(run.history.train, RATE)[1]
        hours = f"{sum(steps) / 3600:.2f}"
        rows.append(
            [
                run.label,
                str(len(steps)),
                number(median(steps)),
                number(median(rates) if rates else None),
                hours,
            ]
        )
    return Table(
        "Speed of each run", ["run", "steps", "seconds per step", "images per second", "hours in steps"], rows
    )
