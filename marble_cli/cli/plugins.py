"""`marble rewards install | new`."""

from pathlib import Path
from typing import Annotated

import typer

from marble_cli.cli.options import to_path

INSTALL = "Example:  marble rewards install ocr"
NEW = "Example:  marble rewards new sharpness"


def install(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME|DISTRIBUTION", help="A reward, or a distribution of some.")
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="PATH|SPEC",
            help="The distribution, a folder or what pip takes; needed unless it is installed here.",
        ),
    ] = None,
) -> None:
    """Give a reward an isolated environment, for dependencies that clash."""
    from marble_cli.output import answering
    from marble_cli.rewards.elsewhere.environment import install as run

    out = ctx.with_resource(answering())
    environment = run(name, source)
    typer.echo(f"{environment.folder} offers {', '.join(environment.rewards)}.", file=out)
    reward = environment.rewards[0]
    typer.echo(f"Use it: marble train '+rewards.{reward}={{plugin: {reward}, isolated: true}}'", file=out)


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The reward's name, e.g. sharpness.")],
    output: Annotated[
        Path | None,
        typer.Option(parser=to_path, metavar="DIR", help="Where to write; else marble-reward-NAME."),
    ] = None,
) -> None:
    """Write a plugin to begin from: it installs, passes its tests and check."""
    from marble_cli.rewards.testing.scaffold import write

    folder = write(name, output)
    typer.echo(f"{folder} holds the reward {name}. What is next:")
    typer.echo(f"  pip install -e {folder}")
    typer.echo(f"  marble rewards check {name}")
    typer.echo(f"  python -m pytest {folder}")
    typer.echo(f"  marble train preset=tiny 'rewards=[{name},compressibility]'")
