"""`marble explain`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marble_cli.cli.options import to_path

if TYPE_CHECKING:
    from marble_cli.config.schema import BalanceConfig

EPILOG = "Example:  marble explain runs/first"


def explain(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(parser=to_path, metavar="RUN", help="The folder of a run.")],
    output: Annotated[
        Path | None,
        typer.Option(
            parser=to_path, metavar="DIR", help="The folder to write pictures to.", show_default="RUN/explain"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show in tables and pictures how a run balanced its rewards."""
    from rich.console import Console

    from marble_cli.explain.analysis import explain as analyse
    from marble_cli.explain.diagnosis import diagnose
    from marble_cli.explain.figures import draw
    from marble_cli.explain.tables import page
    from marble_cli.files import check_writable
    from marble_cli.metrics.history import read_history
    from marble_cli.output import answering

    out = ctx.with_resource(answering())
    history = read_history(run)
    folder = output or run / "explain"
    check_writable(folder, "--output ")
    balance, notes = _balance(run / "config.yaml")
    analysis = analyse(history)
    diagnosis = diagnose(analysis)
    pictures, reasons = draw(history, analysis, folder)
    notes += ["the last line of metrics.jsonl is cut short and left out"] if history.truncated else []
    notes += [f"not drawn: {reason}" for reason in reasons]
    if as_json:
        tree = {
            "run": str(run),
            "balance": balance and asdict(balance),
            **analysis.to_json(),
            "diagnosis": diagnosis,
        }
        tree |= {"notes": notes, "pictures": [str(path) for path in pictures]}
        typer.echo(json.dumps(tree, indent=1, allow_nan=False, default=lambda choice: choice.value), file=out)
        return
    console = Console(file=out, highlight=False, markup=False)
    console.width = max(console.width, 80)  # a narrower terminal wraps lines; a narrower table loses names
    for part in page(analysis, str(run), balance, diagnosis):
        console.print(part)
        console.print()
    for note in notes:
        console.print(f"note: {note}")
    for path in pictures:
        console.print(str(path), soft_wrap=True)


def _balance(path: Path) -> tuple["BalanceConfig | None", list[str]]:
    """Return a run's balance settings, or None and a note if the configuration cannot be loaded.

    A run of another environment may name plugins that are not installed in this one.
    """
    from marble_cli.config.compose import load_resolved
    from marble_cli.errors import ConfigError

    try:
        return load_resolved(path).balance, []
    except ConfigError as error:
        return None, [f"the settings are unknown: {error}"]
