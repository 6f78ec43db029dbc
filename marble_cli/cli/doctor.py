"""`marble doctor`."""

import json
from typing import Annotated

import typer

from marble_cli.cli.libraries import importing

EPILOG = "Example:  marble doctor --gpu"


def doctor(
    ctx: typer.Context,
    gpu: Annotated[bool, typer.Option("--gpu", help="Also compute on the GPU, for about a minute.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine and the installed packages."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from marble_cli.doctor.machine import examine_machine
    from marble_cli.output import answering

    out = ctx.with_resource(answering())
    with importing():  # nearly all of the time
        findings = examine_machine()
    if gpu:
        from marble_cli.doctor.gpu import examine_gpu

        with Console(stderr=True).status("Computing on the GPU, for about a minute"):
            findings += examine_gpu()
    if as_json:
        rows = [{"name": f.name, "ok": f.ok, "detail": f.detail} for f in findings]
        typer.echo(json.dumps({"ok": all(f.ok for f in findings), "findings": rows}, indent=1), file=out)
    else:
        table = Table("", "", "", box=None, show_header=False, pad_edge=False)
        for finding in findings:
            outcome = "[green]ok[/]" if finding.ok else "[red]no[/]"
            table.add_row(finding.name, outcome, escape(finding.detail))
        Console(file=out).print(table)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
