"""Tabulate and draw what became of each reward on the held-out prompts, with intervals and verdicts."""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

from marble_cli.evaluate.statistics import LEVEL, holm
from marble_cli.metrics.history import series
from marble_cli.report import charts
from marble_cli.report.elements import MISSING, Chart, Table, interval, number, rounded, signed
from marble_cli.report.reading import Run
from marble_cli.wording import percent

WORDS = {"rose": "▲ rose", "fell": "▼ fell", "undecided": "● undecided"}
NORMAL = 1.96  # standard errors on either side that hold 95 % of a normal distribution
FIGURES = ("change", "change_low", "change_high", "change_p")


class Change(NamedTuple):
    """The change of a reward, the ends of its 95 % interval, and the p-value of no change."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def reward_names(runs: Sequence[Run], *, watched: bool = True) -> list[str]:
    """Return the names of the rewards of all runs: the trained ones, then those that no run trains on."""
    names = [name for run in runs for name in run.trained]
    names += [name for run in runs for name in run.watched] if watched else []
    return list(dict.fromkeys(names))


def verdicts(changes: Mapping[str, Change]) -> dict[str, str]:
    """Judge the changes of a run's rewards together: rose or fell at 5 %, corrected for their number.

    A change without a p-value gets no verdict.
    """
    p_values = {name: p for name, change in changes.items() if (p := p_value(change)) is not None}
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    said = {
        name: ("rose" if (changes[name].value or 0) > 0 else "fell") if p <= LEVEL else "undecided"
        for name, p in corrected.items()
    }
    return {name: said.get(name, MISSING) for name in changes}


def p_value(change: Change) -> float | None:
    """Return the recorded p-value; else, of an earlier version, that of a normal distribution's interval."""
    if change.p is not None or change.value is None or change.low is None or change.high is None:
        return change.p
    error = (change.high - change.low) / (2 * NORMAL)
    return 2 * NormalDist().cdf(-abs(change.value) / error) if error > 0 else None


def last_changes(run: Run) -> dict[str, Change]:
    """Return the change of every reward from the first evaluation to the last; none without two."""
    last = run.history.held_out[-1] if len(run.history.held_out) > 1 else None
    if last is None:
        return {}
    changes = {}
    for name in (*run.trained, *run.watched):
        change = Change(*(last.get(f"reward/{name}/{key}") for key in FIGURES))
        start, end = run.history.ends(name)
        if change.value is None and start is not None and end is not None:
            change = change._replace(value=end - start)
        changes[name] = change
    return changes


def outcome_table(runs: Sequence[Run]) -> Table:
    """Tabulate each reward at the first and last evaluation, with its change, interval and verdict."""
    rows: list[list[str]] = []
    classes = {}
    changes = {run.label: last_changes(run) for run in runs}
    said = {label: verdicts(found) for label, found in changes.items()}
    for name in reward_names(runs):
        for run in runs:
            start, end = run.history.ends(name)
            if start is None:
                continue
            change = changes[run.label].get(name, Change())
            verdict = said[run.label].get(name, MISSING)
            classes[len(rows), 2] = verdict
            role = "guard" if name in run.history.guards else "trained"
            role = "watched" if name in run.watched else role
            known = [
                f"{signed(change.value)} ({interval(change.low, change.high)})",
                number(start),
                number(end),
                role,
            ]
            rows.append([name, run.label, WORDS.get(verdict, verdict), *known])
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
    changes = {
        name: Change(row.get("difference"), *(row.get("interval") or (None, None)))
        for name, row in results.items()
    }
    judged = verdicts(changes)  # of files of versions that had no verdict
    for name, row in results.items():
        _, low, high, _ = changes[name]
        said = str(row.get("verdict") or judged[name])
        classes[len(rows), 1] = said
        change = f"{signed(row.get('difference'))} ({interval(low, high)})"
        wins = MISSING if row.get("win_rate") is None else percent(row["win_rate"])
        means = [number(row.get("reference")), number(row.get("mean")), str(row.get("n", MISSING))]
        rows.append([name, WORDS.get(said, said), change, wins, *means])
    head = ["reward", "verdict", "change (95 % interval)", "wins", "reference", "mean", "images"]
    return Table(caption, head, rows, classes)


def joint_sentences(runs: Sequence[Run]) -> list[str]:
    """Say for each run what happened to its images in all trained rewards and guards at once."""
    sentences = []
    for run in runs:
        last = run.history.held_out[-1] if len(run.history.held_out) > 1 else {}
        up, down = last.get("eval/joint_improvement"), last.get("eval/joint_decline")
        if up is not None and down is not None:
            counted = "trained reward or guard" if run.history.guards else "trained reward"
            sentences.append(
                f"{run.label}: {percent(up)} of the held-out images improved jointly (one {counted} rose "
                f"and none fell), {percent(down)} declined in all of them."
            )
    return sentences


def relative_changes(run: Run) -> dict[str, tuple[float, float, float]]:
    """Return the changes that have an interval, in the unit of `reward/<k>/gain`."""
    relative = {}
    for name, (change, low, high, _) in last_changes(run).items():
        gain = run.history.last_gain(name)
        if change is None or low is None or high is None or gain is None:
            continue
        unit = change / gain if gain else series(run.history.held_out, f"reward/{name}/std")[1][0]
        if unit > 0:
            relative[name] = (gain, low / unit, high / unit)
    return relative


def change_chart(runs: Sequence[Run]) -> Chart | None:
    """Draw the change of every reward with its interval, in standard deviations of the first evaluation."""
    rows = []
    changes = {run.label: (last_changes(run), relative_changes(run)) for run in runs}
    for name in reward_names(runs):
        for label, (raw, relative) in changes.items():
            if name in relative:
                ends = dict(zip(("value", "low", "high"), map(rounded, relative[name]), strict=True))
                rows.append({"run": label, "reward": name, **ends, "raw": rounded(raw[name].value)})
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
