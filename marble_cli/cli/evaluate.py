"""`marble eval`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marble_cli.cli.libraries import importing
from marble_cli.cli.options import Overrides, Target, to_path

if TYPE_CHECKING:
    from marble_cli.evaluate.report import EvalReport

EPILOG = (
    "Example:  marble eval runs/demo-0 --against base --output judged\n\n"
    "A LoRA from elsewhere:  marble eval lora.safetensors --against base ~preset model=sd3 model.path=DIR"
)


def evaluate(
    ctx: typer.Context,
    target: Target,
    overrides: Overrides = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TARGET",
            help="Compare with this, on the same prompts and noise; repeat the option for more.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(parser=to_path, metavar="DIR", help="Write the report and pictures to this folder."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Score a target on held-out prompts, alone or in comparison with others."""
    from rich.console import Console

    with importing():
        from marble_cli.evaluate.evaluate import evaluate as run
    from marble_cli.output import answering

    out = ctx.with_resource(answering())
    console = Console(file=out)
    console.width = max(console.width, 80)  # as in `marble explain`

    def present(report: "EvalReport") -> None:
        if as_json:
            typer.echo(json.dumps(report.to_json(), indent=1), file=out)
            return
        for table in report.tables():
            console.print(table, "")

    run(target, against or [], overrides or [], output, present)
    if not as_json and output is not None and (output / "images.png").is_file():
        console.print(f"pictures: {output / 'images.png'}", soft_wrap=True, highlight=False, markup=False)
