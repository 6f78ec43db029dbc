"""`marble merge`."""

from pathlib import Path
from typing import Annotated

import typer

from marble_cli.cli.libraries import importing
from marble_cli.errors import RequestError

EPILOG = "Example:  marble merge runs/ocr runs/objects runs/both --weights 0.6,0.4"


def merge(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET ... OUTPUT", help="Runs or checkpoints, then the folder of the merged run."
        ),
    ],
    weights: Annotated[
        str | None,
        typer.Option(metavar="W,W,...", help="One number per target. Equal shares of 1 if not given."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="concat|average|ties|dare",
            help="concat is the exact weighted sum, and ranks add up. The others approximate.",
        ),
    ] = "concat",
    density: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of values that ties and dare keep.")
    ] = 0.5,
) -> None:
    """Merge LoRAs into one without training, by a weighted sum."""
    with importing():
        from marble_cli.checkpoint.merge import MergeMethod
        from marble_cli.run.merge import merge as run
    from marble_cli.paths import expand
    from marble_cli.suggest import nearest

    known = [choice.value for choice in MergeMethod]
    if method not in known:
        raise RequestError(f"--method {method}: there is no such method{nearest(method, known)}")
    targets, output, numbers = split_words(words, weights)
    typer.echo(run(targets, Path(expand("", output)), numbers, MergeMethod(method), density))


def split_words(words: list[str], weights: str | None) -> tuple[list[str], str, list[float] | None]:
    """Tell targets, output and weights apart.

    After `--weights 0.6 0.4` every number but the first arrives among the words, before or after the paths.

    Raises:
        RequestError: the weights are no numbers, or there is no output.
    """
    if weights is None:
        if len(words) < 2:
            raise RequestError(f"merge {' '.join(words)}: expected targets, then the output folder.")
        return words[:-1], words[-1], None
    numbers = _numbers(weights.replace(",", " ").split())
    if numbers is None:
        raise RequestError(
            f"--weights {weights}: expected numbers with commas between them, such as 0.6,0.4."
        )
    more = max(0, len(words) - 1 - len(numbers)) // 2
    for rest, paths in ((words[-more:], words[:-more]), (words[:more], words[more:])) if more else ():
        if (found := _numbers(rest)) is not None:
            words, numbers = paths, numbers + found
            break
    if len(words) < 2:
        raise RequestError(f"merge {' '.join(words)}: expected targets, then the output folder.")
    return words[:-1], words[-1], numbers


def _numbers(words: list[str]) -> list[float] | None:
    try:
        return [float(word) for word in words]
    except ValueError:
        return None
