"""`marble sync`."""

from pathlib import Path
from typing import Annotated

import typer

from marble_cli.cli.options import to_path
from marble_cli.errors import RequestError

EPILOG = "Example:  marble sync runs/first"


def sync(
    runs: Annotated[list[Path], typer.Argument(parser=to_path, metavar="RUN ...", help="Folders of runs.")],
) -> None:
    """Upload what runs have kept for W&B while it could not be reached."""
    from marble_cli.metrics.weights_and_biases import kept_offline, send

    for run in runs:
        if not (run / "config.yaml").is_file():
            raise RequestError(f"{run} is no run: it holds no config.yaml. Expected a run's folder.")
    for run in runs:
        kept = kept_offline(run)
        if kept:
            send(kept)
        typer.echo(f"{run}: {len(kept)} offline runs sent" if kept else f"{run}: nothing was kept offline")
