"""`marble report`."""

from pathlib import Path
from typing import Annotated

import typer

from marble_cli.cli.options import to_path
from marble_cli.errors import RequestError

EPILOG = "Example:  marble report runs/first"


def report(
    ctx: typer.Context,
    runs: Annotated[
        list[Path],
        typer.Argument(
            parser=to_path, metavar="RUN", help="The folders of runs, or of sweeps for all their runs."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            parser=to_path,
            metavar="FILE.html",
            help="The file to write.",
            show_default="RUN/report.html; of several runs report.html",
        ),
    ] = None,
) -> None:
    """Write a page about runs that opens in a browser, offline: rewards, balance, pictures, speed, faults."""
    from marble_cli.files import check_writable, write_whole, writing
    from marble_cli.output import answering
    from marble_cli.report.page import report as make_report

    out = ctx.with_resource(answering())
    file = output or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    check_writable(file.parent, "--output ")
    if file.is_dir():
        raise RequestError(f"--output {file} is a folder. Expected a file, such as {file / 'report.html'}.")
    if file.exists() and not file.is_file():  # its place would be taken by the page
        raise RequestError(f"--output {file} is a device or a pipe. Expected a file, such as report.html.")
    page = make_report(runs)
    with writing(file, "Choose another --output."):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file.resolve(), page, "Choose another --output.")  # a link, such as /dev/stdout, stays one
    typer.echo(file, file=out)
