"""`marble rewards install`."""

from typing import Annotated

import typer

EPILOG = "Example:  marble rewards install ocr"


def install(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME|DISTRIBUTION", help="A reward, or a distribution of rewards.")
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="PATH|SPEC",
            help="The distribution for pip: a folder or a requirement. "
            "Required unless it is installed in this environment.",
        ),
    ] = None,
) -> None:
    """Install a reward whose dependencies clash into an environment of its own."""
    from marble_cli.output import answering
    from marble_cli.rewards.elsewhere.environment import install as install_environment

    out = ctx.with_resource(answering())
    environment = install_environment(name, source)
    typer.echo(f"{environment.folder} offers {', '.join(environment.rewards)}.", file=out)
    reward = environment.rewards[0]
    typer.echo(f"Use it: marble train '+rewards.{reward}={{plugin: {reward}, isolated: true}}'", file=out)
