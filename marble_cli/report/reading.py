"""Read what the report shows of a run from its folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marble_cli.config.aspects import plain_by_aspect
from marble_cli.config.compose import load_resolved
from marble_cli.config.references import without_secrets
from marble_cli.errors import ConfigError
from marble_cli.explain.analysis import Explanation, explain
from marble_cli.metrics.history import History, read_metrics
from marble_cli.paths import labels
from marble_cli.redaction import redact
from marble_cli.report.journal import Journal, read_journal

Settings = dict[str, str]


@dataclass(frozen=True)
class Run:
    """What the report knows of a run.

    Attributes:
        label: its name in the report; no two runs of a report share it.
        folder: its folder.
        history: its metrics.
        found: what the balance did.
        settings: its configuration by dotted key; None if that cannot be loaded.
        trained, watched: the names of its rewards.
        journal: its log.
        evaluation: the `report.json` of `marble eval` in the folder, if there is one.
        notes: what could not be read, in sentences.
    """

    label: str
    folder: Path
    history: History
    found: Explanation
    settings: Settings | None
    trained: tuple[str, ...]
    watched: tuple[str, ...]
    journal: Journal
    evaluation: dict[str, Any] | None
    notes: tuple[str, ...]

    @property
    def planned(self) -> int | None:
        """The number of steps that the run is to take, if known.

        The log has that of the last start; config.yaml, that of the first.
        """
        steps = self.journal.planned or (self.settings or {}).get("trainer.steps")
        return None if steps is None else max(int(steps), self.last_step)

    @property
    def last_step(self) -> int:
        """The last finished step."""
        return max((row["step"] for row in self.history.train), default=0)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs; the report has them in this order.

    Raises:
        RequestError: a folder holds no run, or its metrics are damaged.
    """
    return [read_run(folder, label) for folder, label in zip(folders, labels(folders), strict=True)]


def read_run(folder: Path, label: str) -> Run:
    """Read one run.

    Raises:
        RequestError: the folder holds no run, or its metrics are damaged.
    """
    history = read_metrics(folder)
    settings, tables, note = _settings(folder / "config.yaml")
    trained = tuple(tables["rewards"]) or history.rewards
    watched = tuple(tables["eval_rewards"]) or history.watched
    notes = [note] if note else []
    if history.truncated:
        notes.append("The last line of metrics.jsonl is cut short and left out.")
    evaluation, fault = _evaluation(folder / "report.json")
    notes += [fault] if fault else []
    return Run(
        label, folder, history, explain(history), settings, trained,
        tuple(name for name in watched if name not in trained),
        read_journal(folder), evaluation, tuple(notes),
    )  # fmt: skip


def _settings(path: Path) -> tuple[Settings | None, dict[str, list[str]], str | None]:
    """Return a configuration by dotted key, the names of its rewards, and what is wrong with the file."""
    try:
        tree: Any = without_secrets(load_resolved(path))
    except ConfigError as error:
        reason = redact(str(error)).replace(f"{path.parent}/", "")
        return None, {"rewards": [], "eval_rewards": []}, f"The settings are unknown: {reason}"
    names = {group: list(plain_by_aspect(tree[group])) for group in ("rewards", "eval_rewards")}
    return dict(_flat(tree)), names, None


def _flat(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
    """List the leaves of a configuration by dotted key."""
    if not isinstance(tree, dict) or not tree:
        return [(prefix, _plain(tree))]
    return [
        item
        for key, value in tree.items()
        for item in _flat(value, f"{prefix}.{key}" if prefix else str(key))
    ]


def _plain(value: Any) -> str:
    """Format a value as YAML would; of an absolute path, show the last part only: reports travel."""
    if isinstance(value, str):
        text = redact(value)
        return f"…/{Path(text).name}" if text.startswith("/") else text
    if isinstance(value, list):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return json.dumps(value)


def _evaluation(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """Return the report of `marble eval`, if there is one, and what is wrong with the file."""
    if not path.is_file():
        return None, None
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        results = [part["rewards"] for part in (tree, *tree.get("comparisons", []))]
        valid = all(isinstance(row, dict) for rewards in results for row in rewards.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        valid = False
    if not valid:
        return None, "report.json is not what marble eval writes, and is left out."
    return tree, None
