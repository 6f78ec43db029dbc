"""`marble rewards list`."""

import json
from typing import Annotated, Any

import typer

from marble_cli.cli.libraries import importing

EPILOG = "Example:  marble rewards list"


def list_rewards(
    ctx: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """List the installed rewards, each with its aspects."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from marble_cli import __version__
    from marble_cli.output import answering
    from marble_cli.redaction import redact

    out = ctx.with_resource(answering())
    with importing():
        rows = _describe_installed()
    if as_json:
        typer.echo(json.dumps({"marble": __version__, "rewards": rows}, indent=1), file=out)
        return
    table = Table("reward", "what it scores", box=None, pad_edge=False)
    for row in rows:
        summary = f"[red]{escape(redact(row['error']))}[/]" if row["error"] else escape(row["summary"])
        names = "\n".join([row["name"], *(f"  .{escape(aspect)}" for aspect in row["aspects"])])
        needs = f"requires {escape(', '.join(row['requires']))}; " if row["requires"] else ""
        table.add_row(names, f"{summary}\n[dim]{needs}{row['distribution']}[/]")
    Console(file=out).print(table)


def _describe_installed() -> list[dict[str, Any]]:
    from marble_cli.plugins import installed
    from marble_cli.rewards.api import Declaration
    from marble_cli.rewards.registry import load_plugin

    rows = []
    for name, entry in installed().items():
        declaration, error = Declaration(), ""
        try:
            declaration = Declaration.of(load_plugin(name))
        except Exception as failure:  # one broken plugin must not hide the others
            error = str(failure)
        rows.append(
            {
                "name": name,
                "summary": declaration.summary,
                "requires": list(declaration.requires),
                "aspects": list(declaration.aspects),
                "distribution": entry.dist.name if entry.dist else "",
                "error": error,
            }
        )
    return rows
