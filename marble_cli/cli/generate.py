"""`marble generate`."""

from pathlib import Path
from typing import Annotated

import typer

from marble_cli.cli.libraries import importing
from marble_cli.cli.options import Overrides, Target, to_path

EPILOG = (
    "Example:  marble generate runs/demo-0 --prompt 'a red sign that says \"47\"'\n\n"
    "An edit of a picture:  marble generate runs/edits --image cup.png --prompt 'make it blue'\n\n"
    "Of several:  marble generate runs/edits --image cat.png --image room.png --prompt 'the cat, in the room'"
    "\n\n"
    "Any base model:  marble generate base ~preset model=flux model.path=DIR --prompt 'a red sign'"
)


def generate(
    target: Target,
    overrides: Overrides = None,
    *,
    prompt: Annotated[
        list[str], typer.Option(metavar="TEXT", help="A prompt; repeat the option for more pictures.")
    ],
    image: Annotated[
        list[Path] | None,
        typer.Option(
            parser=to_path,
            metavar="FILE",
            help="The picture to start from, for a model of image editing: one for all prompts, or one each; "
            "if the model takes several, as many for each prompt, in order.",
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            parser=to_path,
            metavar="DIR",
            help="The folder to write 000.png or 000.mp4 and so on to; files of these names are replaced.",
        ),
    ] = Path("outputs"),
    seed: Annotated[int, typer.Option(metavar="N", help="The seed of the initial noise.")] = 0,
) -> None:
    """Generate one picture or video per prompt, with the settings of the run or with overrides."""
    with importing():
        from marble_cli.evaluate.generate import generate as run

    for file in run(target, prompt, output, seed, overrides or [], image or []):
        typer.echo(file)
