"""`marble export`."""

from pathlib import Path
from typing import Annotated

import typer

from marble_cli.checkpoint.formats import ExportFormat
from marble_cli.cli.libraries import importing
from marble_cli.cli.options import to_path

EPILOG = (
    "Example:  marble export runs/demo-0 DIR\n\n"
    "Then:  pipeline.load_lora_weights('DIR')\n\n"
    "Or, for a run with model.train=full:  "
    "SD3Transformer2DModel.from_pretrained('DIR', subfolder='transformer')"
)


def export(
    target: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT|RUN", help="A checkpoint folder, or a run folder for its latest checkpoint."
        ),
    ],
    directory: Annotated[
        Path, typer.Argument(parser=to_path, metavar="DIR", help="The folder to write the weights to.")
    ],
    form: Annotated[
        ExportFormat,
        typer.Option(
            "--format",
            help="The loader: diffusers' load_lora_weights, PeftModel.from_pretrained, or ComfyUI. "
            "Only diffusers loads a whole transformer.",
        ),
    ] = ExportFormat.diffusers,
) -> None:
    """Export trained weights: a LoRA for diffusers, peft or ComfyUI, or a transformer."""
    with importing():
        from marble_cli.checkpoint.export import export as run

    typer.echo(run(target, directory, form))
