"""`marble generate`."""

from pathlib import Path
from typing import Annotated

import typer

from marble_cli.cli.options import Target, to_path

EPILOG = "Example:  marble generate runs/demo-0 --prompt 'a red sign that says \"47\"'"


def generate(
    target: Target,
    prompt: Annotated[list[str], typer.Option(metavar="TEXT", help="A prompt; may be given again.")],
    output: Annotated[
        Path, typer.Option(parser=to_path, metavar="DIR", help="Where the PNG files go.")
    ] = Path("outputs"),
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the initial noise.")] = 0,
) -> None:
    """Draw one picture a prompt."""
    from marble_cli.evaluate.generate import generate as run

    for file in run(target, prompt, output, seed):
        typer.echo(file)
