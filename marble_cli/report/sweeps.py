"""Read sweeps: their cells as runs of the report, and the front that these span over any two rewards."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from marble_cli.config.sweep import plain
from marble_cli.errors import RequestError
from marble_cli.report import planes
from marble_cli.report.elements import MISSING, Chart, Group, Table, interval, rounded, signed
from marble_cli.report.outcome import relative_changes, reward_names
from marble_cli.report.reading import Run
from marble_cli.sweep.record import Sweep, is_sweep, read_sweep
from marble_cli.sweep.results import read_results
from marble_cli.wording import percent

JOINED = "yes"  # in the last column of a front's values
Place = Mapping[str, tuple[float, float, float]]  # changes with their intervals, by reward


def expand(folders: Sequence[Path]) -> tuple[list[Path], list[Sweep]]:
    """Replace the folder of each sweep by those of its cells that have begun; also return the sweeps.

    Raises:
        RequestError: a sweep is damaged, or none of its cells has begun.
    """
    runs, sweeps = [], []
    for folder in folders:
        if not is_sweep(folder):
            runs.append(folder)
            continue
        sweep = read_sweep(folder)
        cells = [folder / cell.name for cell in sweep.cells]
        begun = [cell for cell in cells if (cell / "config.yaml").is_file()]
        if not begun:
            raise RequestError(f"{folder} is a sweep, and none of its {len(cells)} cells has begun yet.")
        runs += begun
        sweeps.append(sweep)
    return runs, sweeps


def cell_tables(sweep: Sweep) -> list[Table]:
    """Tabulate the cells of a sweep, also those that have not begun, and why some failed."""
    name, results = sweep.folder.resolve().name, read_results(sweep)
    rows = []
    for result in results:
        joint = MISSING if result.joint_improvement is None else percent(result.joint_improvement)
        worst = result.describe_worst() or MISSING
        rows.append([result.name, str(result.steps), joint, worst])
    head = ["cell", "steps", "joint improvement", "worst reward"]
    failed = [[result.name, result.failure] for result in results if result.failure]
    failures = [Table(f"{name}: cells that failed", ["cell", "why"], failed)] if failed else []
    return [Table(f"{name}: cells of the sweep", head, rows), *failures]


def fronts(runs: Sequence[Run], sweeps: Sequence[Sweep]) -> Group:
    """Draw the cells of all sweeps by their changes in any two rewards, a chart per pair.

    Pairs between which the sweep chooses, with the most cells on their front, come first.
    """
    swept = {sweep.folder / cell.name: cell.values for sweep in sweeps for cell in sweep.cells}
    cells = [
        (run, name_values(swept[run.folder]), relative_changes(run)) for run in runs if run.folder in swept
    ]
    pairs = combinations(reward_names([run for run, _, _ in cells]), 2)
    drawn = [chart for pair in pairs if (chart := _front(runs, cells, pair))]
    drawn.sort(key=lambda chart: -sum(row[-1] == JOINED for row in chart.values.rows))
    text = (
        "A point per cell: its change from the first to the last evaluation in two rewards, in standard "
        "deviations of the first, with 95 % intervals. Up and to the right is better. A cell beats another "
        "if it is at least as good in both rewards and better in one; the line joins the cells that none "
        "beats. Where intervals overlap, chance may decide which these are."
    )
    gone = "It needs two evaluations of a cell, and two rewards."
    return Group("Front", text if drawn else gone, drawn)


def name_values(values: Mapping[str, Any]) -> str:
    """Return swept values by the last parts of their keys, such as `floor 0.1, seed 0`."""
    return ", ".join(f"{key.rpartition('.')[2]} {plain(value)}" for key, value in values.items())


def unbeaten(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Tell of each point whether no other is at least as high in both coordinates and higher in one."""
    return [not any(x >= own[0] and y >= own[1] and (x, y) != own for x, y in points) for own in points]


def _front(
    runs: Sequence[Run], cells: Sequence[tuple[Run, str, Place]], pair: tuple[str, str]
) -> Chart | None:
    known = [(run, name, place) for run, name, place in cells if place.keys() >= {*pair}]
    if not known:
        return None
    joined = unbeaten([(place[pair[0]][0], place[pair[1]][0]) for _, _, place in known])
    rows: list[dict[str, Any]] = []
    values = []
    for (run, name, place), best in zip(known, joined, strict=True):
        row: dict[str, Any] = {"run": run.label, "cell": name, "joined": best}
        for axis, reward in zip("xy", pair, strict=True):
            ends = zip((axis, f"{axis}_low", f"{axis}_high"), place[reward], strict=True)
            row |= {key: rounded(value) for key, value in ends}
        rows.append(row)
        changes = [
            text
            for x, low, high in (place[reward] for reward in pair)
            for text in (signed(x), interval(low, high))
        ]
        values.append([name, *changes, JOINED if best else "no"])
    title = " and ".join(pair)
    best_rows = sorted((row for row in rows if row["joined"]), key=lambda row: float(row["x"]))
    summary = "joined: " + "; ".join(row["cell"] for row in best_rows)
    spec = planes.front(rows, [run.label for run in runs], f"{title}. {summary}", pair)
    head = ["cell", *(part for reward in pair for part in (reward, "95 % interval")), "joined"]
    return Chart(title, summary, spec, Table(f"{title}, changes in standard deviations", head, values))
