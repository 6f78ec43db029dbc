"""Say what was run, and how the configurations of several runs differ."""

from collections.abc import Sequence

from marble_cli.report.elements import MISSING, Table
from marble_cli.report.reading import Run

# Of every run, in words; the rest of a configuration is in a table of its own.
HEADLINES = {
    "model": ("model.path",),
    "trained": ("model.train", "model.lora.rank"),
    "balance": (
        "balance.name",
        "balance.mode",
        "balance.refresh_when",
        "balance.refresh_every",
        "balance.floor",
    ),
    "prompts per step": ("rollout.groups", "rollout.group_size"),
    "resolution": ("model.resolution",),
    "learning rate": ("optimizer.lr", "optimizer.schedule", "optimizer.warmup"),
    "seed": ("trainer.seed",),
}
UNSAID = (  # of a headline
    ("balance.refresh_when", "scheduled"),
    ("balance.floor", "0.0"),
    ("optimizer.schedule", "constant"),
    ("optimizer.warmup", "0"),
)
OWN = ("run.dir", "run.name", "rewards", "eval_rewards")  # differ between any two runs, or are named above


def overview(runs: Sequence[Run]) -> Table:
    """Tabulate the main settings of each run, a column per run."""
    rows = [["trained rewards", *(", ".join(run.trained) or MISSING for run in runs)]]
    rows += [["watched rewards", *(", ".join(run.watched) or "none" for run in runs)]]
    rows += [["steps", *(MISSING if run.planned is None else str(run.planned) for run in runs)]]
    for title, keys in HEADLINES.items():
        rows.append([title, *(_headline(run, *keys) for run in runs)])
    return Table("Main settings", ["", *(run.label for run in runs)], rows)


def _headline(run: Run, key: str, *more: str) -> str:
    """Return the value of a key, and those of others with the last parts of their keys."""
    known = {name: value for name, value in (run.settings or {}).items() if (name, value) not in UNSAID}
    if known.get("balance.mode") != "amortized" or "balance.refresh_when" in known:
        known.pop("balance.refresh_every", None)
    parts = [known.get(key, MISSING)]
    return ", ".join(parts + [f"{other.rsplit('.')[-1]} {known[other]}" for other in more if other in known])


def differences(runs: Sequence[Run]) -> Table:
    """Tabulate the keys whose values differ between runs whose configuration is known.

    Of a reward that only some of the runs have, the keys are left out.
    """
    known = [run for run in runs if run.settings is not None]
    groups = [{_group(key) for key in run.settings or {}} for run in known]
    partial = {group for some in groups for group in some if not all(group in other for other in groups)}
    keys = dict.fromkeys(
        key for run in known for key in run.settings or {} if key not in OWN and _group(key) not in partial
    )
    rows = []
    for key in keys:
        values = [(run.settings or {}).get(key, MISSING) for run in known]
        if len(set(values)) > 1:
            rows.append([key, *values])
    return Table("Settings that differ", ["key", *(run.label for run in known)], rows)


def _group(key: str) -> str:
    """Return the part of a key that names a reward, `rewards.ocr`; of other keys, their group."""
    parts = key.split(".")
    return ".".join(parts[: 2 if parts[0] in ("rewards", "eval_rewards") else 1])


def whole(run: Run) -> Table:
    """Tabulate the whole configuration of a run."""
    return Table(
        f"{run.label}: whole configuration",
        ["key", "value"],
        [list(item) for item in (run.settings or {}).items()],
    )
