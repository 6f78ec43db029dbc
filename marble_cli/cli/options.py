"""Arguments that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

from marble_cli.paths import expand


def to_path(text: str) -> Path:
    """A path from the command line, where `--output=~/x` reaches us with its `~`."""
    return expand("", str(text))  # a default is a path already


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="OVERRIDE",
        help="Configuration in Hydra's grammar: group=choice, key.path=value, +new=value, ~gone.",
    ),
]
Target = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT|RUN|base", help="A checkpoint folder, a run folder, or the base model."
    ),
]
