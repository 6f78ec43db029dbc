"""`marble generate`."""

from pathlib import Path
from typing import Annotated

import typer

from marble_cli.cli.options import Overrides, Target, to_path

EPILOG = (
    "Example:  marble generate runs/demo-0 --prompt 'a red sign that says \"47\"'   or   "
    "marble generate base ~preset model=flux model.path=DIR --prompt 'a red sign'"
)


def generate(
    target: Target,
    overrides: Overrides = None,
    *,
    prompt: Annotated[list[str], typer.Option(metavar="TEXT", help="A prompt; may be given again.")],
    output: Annotated[
        Path, typer.Option(parser=to_path, metavar="DIR", help="Where the PNG files go.")
    ] = Path("outputs"),
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the initial noise.")] = 0,
) -> None:
    """Draw one picture per prompt, as the target's run does or as overrides say."""
    from marble_cli.evaluate.generate import generate as run

    for file in run(target, prompt, output, seed, overrides or []):
        typer.echo(file)
