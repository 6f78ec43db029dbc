"""How often a run's steps pushed some reward down: cosines of the applied direction with each reward's gradient.

    python scripts/conflict.py RUN [RUN ...]

Reads the `balance/cosine/<reward>` figures of metrics.jsonl, which a run writes at its refresh steps (at every step with
balance.mode=full).
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from marble_cli.metrics.jsonl import read

PREFIX = "balance/cosine/"


def cosines(run: Path) -> list[dict[str, float]]:
    """Cosines by reward of every step that measured them."""
    rows = [
        {key.removeprefix(PREFIX): value for key, value in row.items() if key.startswith(PREFIX)}
        for row in read(run / "metrics.jsonl")
    ]
    return [row for row in rows if row]


def main(runs: list[Path]) -> None:
    table = Table(
        "run", "steps", "some reward pushed down", "lowest cosine", "pushed down, by reward", box=None
    )
    for run in runs:
        steps = cosines(run)
        if not steps:
            raise SystemExit(
                f"{run}/metrics.jsonl holds no {PREFIX}* figures. Expected a run with refresh steps."
            )
        negative = sum(min(step.values()) < 0 for step in steps)
        names = dict.fromkeys(name for step in steps for name in step)
        shares = {name: sum(step.get(name, 0) < 0 for step in steps) / len(steps) for name in names}
        table.add_row(
            run.name, str(len(steps)), f"{negative / len(steps):.0%}",
            f"{min(min(step.values()) for step in steps):+.3f}",
            ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share),
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    main(parser.parse_args().runs)
