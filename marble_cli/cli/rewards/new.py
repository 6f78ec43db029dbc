"""`marble rewards new`."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from marble_cli.cli.options import to_path

EPILOG = "Example:  marble rewards new sharpness"


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the reward, e.g. sharpness.")],
    output: Annotated[
        Path | None,
        typer.Option(
            parser=to_path, metavar="DIR", help="The folder to write.", show_default="marble-reward-NAME"
        ),
    ] = None,
) -> None:
    """Create a plugin with a working reward and its tests, for you to edit."""
    from marble_cli.rewards.testing.scaffold import write_plugin

    folder = write_plugin(name, output)
    typer.echo(f"{folder} holds the reward {name}. Next steps:")
    typer.echo(f"  pip install -e {quote(str(folder))}")
    typer.echo(f"  marble rewards check {name}")
    typer.echo(f"  python -m pytest {quote(str(folder))}")
    typer.echo(f"  marble train preset=tiny 'rewards=[{name},compressibility]'")
