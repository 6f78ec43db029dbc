"""Draw what the balance did over time: shares, cosines of the direction, and conflicts between rewards."""

from collections.abc import Sequence
from itertools import combinations

from marble_cli.explain.analysis import pairwise_key
from marble_cli.explain.diagnosis import diagnose
from marble_cli.metrics.history import Series, series
from marble_cli.report import charts
from marble_cli.report.curves import POINTS, Point, panels
from marble_cli.report.elements import MISSING, Chart, Group, Table, number, rounded, signed, some
from marble_cli.report.outcome import reward_names
from marble_cli.report.reading import Run
from marble_cli.wording import count, percent


def sentences(run: Run) -> list[str]:
    """Say what the run's numbers show, in the sentences of `marble explain`."""
    return list(diagnose(run.found)) if run.history.train else []


def balance_table(runs: Sequence[Run]) -> Table:
    """Tabulate per reward and run: mean share, and the cosines of the applied direction with its gradient."""
    rows = []
    for name in reward_names(runs, watched=False):
        for run in runs:
            for reward in (reward for reward in run.found.rewards if reward.name == name):
                cosine = reward.cosine
                measured = [MISSING] * 3
                if cosine is not None:
                    measured = [signed(cosine.mean), signed(cosine.lowest), percent(cosine.negative)]
                rows.append(
                    [name, run.label, number(reward.alpha), *measured, number(reward.effective_samples)]
                )
    head = ["reward", "run", "mean share", "mean cosine", "lowest", "below 0", "effective samples"]
    return Table("Shares, and cosines of the applied direction with each reward's gradient", head, rows)


def guard_table(runs: Sequence[Run]) -> Table:
    """Tabulate per guard and run how often it acted and how strongly."""
    rows = [
        [
            reward.name, run.label, percent(reward.guard.acted), number(reward.guard.multiplier),
            signed(reward.guard.before.mean), percent(reward.guard.before.negative),
            number(reward.guard.violation),
        ]
        for run in runs
        for reward in run.found.rewards
        if reward.guard
    ]  # fmt: skip
    head = ["guard", "run", "acted", "multiplier", "mean cosine before", "below 0", "largest violation"]
    return Table("Guards, over the refreshes", head, rows)


def share_curves(runs: Sequence[Run]) -> Group:
    """Draw each reward's smoothed share over the steps."""
    text = (
        "Share (alpha) of each reward in the update direction, smoothed as the amortised steps use it. "
        "The dashed line is an equal share, if it is the same in all runs."
    )
    gone = "No shares are recorded: this balance has none, or no step is finished."
    names = reward_names(runs, watched=False)
    balanced = {len(set(run.trained) - set(run.history.guards)) for run in runs}
    equal = 1 / max(1, *balanced) if len(balanced) == 1 else None
    most = max((value for run in runs for name in names for value in _shares(run, name)[1]), default=1.0)
    return panels(
        Group("Shares in the balance", text), gone, runs, names, _share_points,
        "share", domain=(0, max(most, min(1.0, most + 0.1))), reference=equal,
    )  # fmt: skip


def _share_points(run: Run, name: str) -> list[Point]:
    return _points(run, _shares(run, name))


def _shares(run: Run, name: str) -> Series:
    cached = run.history.cached_shares(name)
    return cached if cached[0] else run.history.fresh_shares(name)


def cosine_curves(runs: Sequence[Run]) -> Group:
    """Draw the cosine of the applied direction with each reward's gradient."""
    text = (
        "Cosine of the applied direction with each reward's gradient, at the steps that measured it. Below "
        "the dashed line, the step pushed the reward down."
    )
    gone = "No cosines with the applied direction are recorded."
    names = reward_names(runs, watched=False)
    values = [value for run in runs for name in names for value in _cosines(run, name)[1]]
    domain = (min(0.0, *values) - 0.05, max(0.2, *values) + 0.05) if values else (-1.0, 1.0)
    return panels(
        Group("Cosines with the direction", text), gone, runs, names, _cosine_points,
        "cosine", domain=domain, reference=0,
    )  # fmt: skip


def _cosine_points(run: Run, name: str) -> list[Point]:
    return _points(run, _cosines(run, name))


def _cosines(run: Run, name: str) -> Series:
    return series(run.history.train, f"balance/cosine/{name}")


def _points(run: Run, values: Series) -> list[Point]:
    return [{"run": run.label, "step": step, "value": value} for step, value in zip(*values, strict=True)]


def conflicts(runs: Sequence[Run]) -> Group:
    """Draw the cosines between the rewards' gradients: their means as a matrix, and each pair over time."""
    drawn = [chart for run in runs if run.found.pairs for chart in (_matrix(run), _over_time(run, len(runs)))]
    text = (
        "Cosine between the gradients of two rewards at the refreshes. Orange pairs are in conflict, blue "
        "ones agree."
    )
    gone = "No pairwise cosines of gradients are recorded."
    return Group("Conflicts between rewards", text if drawn else gone, drawn)


def _matrix(run: Run) -> Chart:
    names = [reward.name for reward in run.found.rewards]
    rows = [
        {
            "first": pair.first, "second": pair.second, "value": rounded(pair.cosine.mean),
            "below": rounded(pair.cosine.negative),
        }
        for pair in run.found.pairs
    ]  # fmt: skip
    least = min(run.found.pairs, key=lambda pair: pair.cosine.mean)
    lowest = f"{least.first} and {least.second}, {signed(least.cosine.mean)}"
    summary = f"Lowest mean: {lowest} over {count(least.cosine.count, 'refresh')}"
    title = f"{run.label}: mean cosines"
    cells = [
        [
            pair.first,
            pair.second,
            *map(signed, (pair.cosine.mean, pair.cosine.lowest)),
            percent(pair.cosine.negative),
        ]
        for pair in run.found.pairs
    ]
    table = Table(title, ["reward", "and", "mean", "lowest", "below 0"], cells)
    return Chart(title, summary, charts.matrix(rows, names, f"{title}. {summary}"), table)


def _over_time(run: Run, runs: int) -> Chart:
    names, train = [reward.name for reward in run.found.rewards], run.history.train
    pairs = {
        f"{first} · {second}": series(train, pairwise_key(train, first, second))
        for first, second in combinations(names, 2)
    }
    pairs = {pair: values for pair, values in pairs.items() if values[0]}
    steps = sorted({step for known, _ in pairs.values() for step in known})
    kept = set(some(steps, max(12, POINTS // (runs * len(pairs)))))
    rows = [
        {"pair": pair, "step": step, "value": rounded(value)}
        for pair, values in pairs.items()
        for step, value in zip(*values, strict=True)
        if step in kept
    ]
    title = f"{run.label}: cosines over time"
    below = sum(row["value"] < 0 for row in rows) / len(rows)
    summary = (
        f"{count(len(pairs), 'pair')}, {count(len(kept), 'refresh')}; {percent(below)} of the cosines below 0"
    )
    cells = [[row["pair"], str(row["step"]), signed(row["value"])] for row in some(rows)]
    table = Table(f"{title}, some of them", ["pair", "step", "cosine"], cells)
    return Chart(title, summary, charts.strips(rows, list(pairs), f"{title}. {summary}"), table)
