"""Tabulate and draw what became of each reward on the held-out prompts, with intervals and verdicts."""

from collections.abc import Sequence
from typing import Any

from marble_cli.explain.diagnosis import percent
from marble_cli.metrics.history import series
from marble_cli.report import charts
from marble_cli.report.elements import MISSING, Chart, Table, interval, number, rounded, signed
from marble_cli.report.reading import Run

WORDS = {"rose": "▲ rose", "fell": "▼ fell", "undecided": "● undecided"}
ENDS = ("change", "change_low", "change_high")


def reward_names(runs: Sequence[Run], *, watched: bool = True) -> list[str]:
    """Return the names of the rewards of all runs: the trained ones, then those that no run trains on."""
    names = [name for run in runs for name in run.trained]
    names += [name for run in runs for name in run.watched] if watched else []
    return list(dict.fromkeys(names))


def verdict(low: float | None, high: float | None) -> str:
    """Judge a change by its interval; an unknown interval gives no verdict."""
    if low is None or high is None:
        return MISSING
    return "rose" if low > 0 else "fell" if high < 0 else "undecided"


def outcome_table(runs: Sequence[Run]) -> Table:
    """Tabulate each reward at the first and last evaluation, with its change, interval and verdict."""
    rows: list[list[str]] = []
    classes = {}
    for name in reward_names(runs):
        for run in runs:
            means = series(run.history.held_out, f"reward/{name}/mean")[1]
            if not means:
                continue
            end, change, low, high = (None,) * 4
            if len(means) > 1:
                end = means[-1]
                change, low, high = (run.history.held_out[-1].get(f"reward/{name}/{key}") for key in ENDS)
                change = end - means[0] if change is None else change
            said = verdict(low, high)
            classes[len(rows), 2] = said
            role = "watched" if name in run.watched else "trained"
            known = [f"{signed(change)} ({interval(low, high)})", number(means[0]), number(end), role]
            rows.append([name, run.label, WORDS.get(said, said), *known])
    head = ["reward", "run", "verdict", "change (95 % interval)", "start", "end", "role"]
    return Table("Held-out prompts, from the first to the last evaluation of each run", head, rows, classes)


def evaluation_tables(run: Run, tree: dict[str, Any]) -> list[Table]:
    """Tabulate the `report.json` that `marble eval` left in the run's folder, a table per comparison."""
    target, prompts = tree.get("target", run.label), tree.get("prompts", MISSING)
    tables = []
    for comparison in tree.get("comparisons") or [tree]:
        against = comparison.get("against")
        what = f"{target} against {against}" if against else str(target)
        caption = f"{run.label}: marble eval of {what}, {prompts} held-out prompts"
        tables.append(_evaluation_table(caption, comparison["rewards"]))
    return tables


def _evaluation_table(caption: str, results: dict[str, dict[str, Any]]) -> Table:
    rows: list[list[str]] = []
    classes = {}
    for name, row in results.items():
        low, high = row.get("interval") or (None, None)
        said = str(row.get("verdict") or verdict(low, high))
        classes[len(rows), 1] = said
        change = f"{signed(row.get('difference'))} ({interval(low, high)})"
        wins = MISSING if row.get("win_rate") is None else percent(row["win_rate"])
        means = [number(row.get("reference")), number(row.get("mean")), str(row.get("n", MISSING))]
        rows.append([name, WORDS.get(said, said), change, wins, *means])
    head = ["reward", "verdict", "change (95 % interval)", "wins", "reference", "mean", "images"]
    return Table(caption, head, rows, classes)


def joint_sentences(runs: Sequence[Run]) -> list[str]:
    """Say for each run what happened to its images in all trained rewards at once."""
    sentences = []
    for run in runs:
        last = run.history.held_out[-1] if len(run.history.held_out) > 1 else {}
        up, down = last.get("eval/joint_improvement"), last.get("eval/joint_decline")
        if up is not None and down is not None:
            sentences.append(
                f"{run.label}: {percent(up)} of the held-out images improved jointly (one trained reward "
                f"rose and none fell), {percent(down)} declined in all of them."
            )
    return sentences


def change_chart(runs: Sequence[Run]) -> Chart | None:
    """Draw the change of every reward with its interval, in standard deviations of the first evaluation."""
    rows = []
    for name in reward_names(runs):
        for run in runs:
            held_out = run.history.held_out
            deviations = series(held_out, f"reward/{name}/std")[1]
            last = held_out[-1] if len(held_out) > 1 else {}
            ends = [last[key] for end in ENDS if (key := f"reward/{name}/{end}") in last]
            if len(ends) == len(ENDS) and deviations and deviations[0] > 0:
                value, low, high = (rounded(end / deviations[0]) for end in ends)
                row = {"run": run.label, "reward": name, "value": value, "low": low, "high": high}
                rows.append({**row, "raw": rounded(ends[0])})
    if not rows:
        return None
    title = "change, in standard deviations of the start"
    cells = [
        [row["reward"], row["run"], signed(row["value"]), interval(row["low"], row["high"])] for row in rows
    ]
    summary = "; ".join(f"{name}, {run}: {value} ({span})" for name, run, value, span in cells)
    spec = charts.changes(rows, [run.label for run in runs], f"{title}. {summary}", title)
    text = "Marks are changes from the first to the last evaluation, bars their 95 % intervals."
    return Chart(
        "Change of every reward", text, spec, Table(title, ["reward", "run", "change", "interval"], cells)
    )
