"""Arguments that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

from marble_cli.paths import expand


def to_path(text: str) -> Path:
    """Return a path of the command line, with `~` expanded: shells leave it in `--output=~/x`."""
    return expand("", str(text))  # a default is a Path


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="OVERRIDE",
        help="Changes to the configuration, in Hydra's grammar: "
        "group=choice, key.path=value, +new=value, ~removed.",
    ),
]
Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="base, the folder of a run or a checkpoint, or a LoRA from elsewhere: a file, a folder or a "
        "hub id.",
    ),
]
