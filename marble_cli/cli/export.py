"""`marble export`."""

from pathlib import Path
from typing import Annotated

import typer

from marble_cli.checkpoint.formats import ExportFormat
from marble_cli.cli.libraries import importing
from marble_cli.cli.options import Overrides, to_path

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
            metavar="TARGET",
            help="The folder of a run, for its latest checkpoint, or of a checkpoint; or a LoRA from "
            "elsewhere: a file, a folder or a hub id.",
        ),
    ],
    directory: Annotated[
        Path, typer.Argument(parser=to_path, metavar="DIR", help="The folder to write the weights to.")
    ],
    overrides: Overrides = None,
    form: Annotated[
        ExportFormat,
        typer.Option(
            "--format",
            help="The loader: diffusers' load_lora_weights, PeftModel.from_pretrained, or ComfyUI. "
            "Only diffusers loads a whole transformer.",
        ),
    ] = ExportFormat.diffusers,
) -> None:
    """Export trained weights: a LoRA for diffusers, peft or ComfyUI, or a transformer.

    Overrides name the model of a LoRA from elsewhere: model=sd3 model.path=FOLDER.
    """
    with importing():
        from marble_cli.evaluate.export import export_target

    typer.echo(export_target(target, directory, form, overrides or []))
