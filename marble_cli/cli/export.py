"""`marble export`."""

from pathlib import Path
from typing import Annotated

import typer

from marble_cli.checkpoint.formats import ExportFormat
from marble_cli.cli.options import to_path

EPILOG = (
    "Example:  marble export runs/demo-0 DIR   then   pipeline.load_lora_weights('DIR'), or for a run with "
    "model.train=full SD3Transformer2DModel.from_pretrained('DIR', subfolder='transformer')"
)


def export(
    target: Annotated[
        str, typer.Argument(metavar="CHECKPOINT|RUN", help="A checkpoint folder, or a run's latest.")
    ],
    directory: Annotated[Path, typer.Argument(parser=to_path, metavar="DIR", help="Where the weights go.")],
    form: Annotated[
        ExportFormat,
        typer.Option(
            "--format",
            help="Who loads them: load_lora_weights, PeftModel.from_pretrained, or ComfyUI. "
            "A whole transformer is for diffusers alone.",
        ),
    ] = ExportFormat.diffusers,
) -> None:
    """Write a LoRA for diffusers, peft or ComfyUI, or a whole transformer."""
    from marble_cli.checkpoint.export import export as run

    typer.echo(run(target, directory, form))
