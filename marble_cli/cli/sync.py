"""`marble sync`."""

from pathlib import Path
from typing import Annotated

import typer

from marble_cli.cli.options import to_path
from marble_cli.errors import RequestError

EPILOG = "Example:  marble sync runs/first"


def sync(
    runs: Annotated[list[Path], typer.Argument(parser=to_path, metavar="RUN", help="The folders of runs.")],
) -> None:
    """Upload runs' metrics that W&B lacks, such as those recorded offline."""
    from marble_cli.lock import is_held
    from marble_cli.metrics.wandb_history import list_starts, upload_history

    for run in runs:
        if not (run / "config.yaml").is_file():
            raise RequestError(f"{run} is no run: it holds no config.yaml. Expected the folder of a run.")
    for run in runs:
        steps = upload_history(run, running=is_held(run))
        if steps:
            typer.echo(f"{run}: {steps} steps sent, as one history")
        elif list_starts(run):
            typer.echo(f"{run}: W&B lacks nothing")
        else:
            typer.echo(f"{run}: nothing sent, because no start of the run logged to W&B")
