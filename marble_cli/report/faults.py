"""Tabulate what went wrong in each run, and how the run dealt with it."""

from collections.abc import Sequence

from marble_cli.metrics.history import History, series
from marble_cli.report.elements import MISSING, Table
from marble_cli.report.journal import LINES
from marble_cli.report.reading import Run

STEPS = 12  # that are listed one by one


def fault_table(runs: Sequence[Run]) -> Table:
    """Tabulate resumes, retries, masked images, skipped steps and refused solutions; a column per run."""
    facts = {
        "finished steps": [_steps(run) for run in runs],
        "ended by": [_end(run) for run in runs],
        "resumed after step": [
            _listed(run.journal.starts[1:]) if run.journal.exists else MISSING for run in runs
        ],
        "repeated calls of rewards": [_retries(run) for run in runs],
        "images masked because scoring failed": [_masked(run) for run in runs],
        "steps skipped (gradient not finite)": [_listed(_flagged(run.history, "skipped")) for run in runs],
        "refreshes without a solution": [_listed(_flagged(run.history, "balance/failed")) for run in runs],
        "solvers refused": [_refused(run) for run in runs],
        "warnings and errors in the log": [
            str(run.journal.warnings) if run.journal.exists else MISSING for run in runs
        ],
    }
    return Table(
        "Faults and how they were met",
        ["", *(run.label for run in runs)],
        [[fact, *said] for fact, said in facts.items()],
    )


def message_tables(runs: Sequence[Run]) -> list[Table]:
    """Tabulate the last warnings and errors of each run's log."""
    tables = []
    for run in runs:
        journal = run.journal
        if journal.messages:
            which = (
                f"the last {LINES} of {journal.warnings}"
                if journal.warnings > LINES
                else str(journal.warnings)
            )
            caption = f"{run.label}: warnings and errors, {which}"
            tables.append(Table(caption, ["time", "level", "message"], journal.messages))
    return tables


def _steps(run: Run) -> str:
    return f"{run.last_step}" + ("" if run.planned is None else f" of {run.planned}")


def _end(run: Run) -> str:
    if run.journal.failure is not None:
        return run.journal.failure
    if run.planned is None:
        return MISSING
    return "its last step" if run.last_step >= run.planned else "a stop, or it is still running"


def _flagged(history: History, key: str) -> list[int]:
    return [row["step"] for row in history.train if row.get(key) == 1]


def _listed(steps: Sequence[int]) -> str:
    if not steps:
        return "none"
    more = f", … ({len(steps)} in all)" if len(steps) > STEPS else ""
    return ", ".join(map(str, steps[:STEPS])) + more


def _retries(run: Run) -> str:
    if not run.journal.exists:
        return MISSING
    return ", ".join(f"{name} {times}" for name, times in run.journal.retries) or "none"


def _masked(run: Run) -> str:
    rows = (*run.history.train, *run.history.held_out)
    counts = {name: sum(series(rows, f"reward/{name}/failed")[1]) for name in (*run.trained, *run.watched)}
    return ", ".join(f"{name} {int(times)}" for name, times in counts.items() if times) or "none"


def _refused(run: Run) -> str:
    fallbacks = run.found.fallbacks
    return MISSING if fallbacks is None else str(fallbacks)
