"""Arguments that several commands take."""

from typing import Annotated

import typer

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
