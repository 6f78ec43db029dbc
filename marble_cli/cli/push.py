"""`marble push`."""

from pathlib import Path
from typing import Annotated

import typer

from marble_cli.cli.libraries import importing
from marble_cli.cli.options import to_path

EPILOG = "Example:  marble push runs/demo-0 me/tiny-five-rewards --dry-run"


def push(
    ctx: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT|RUN", help="A checkpoint folder, or a run folder for its latest checkpoint."
        ),
    ],
    repo: Annotated[
        str,
        typer.Argument(metavar="REPO", help="The repository of the hub, OWNER/NAME; made if there is none."),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the folder that would be uploaded, and upload nothing.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            parser=to_path,
            metavar="DIR",
            help="Where to write that folder; new, empty, or of an earlier push.",
            show_default="push/REPO",
        ),
    ] = None,
) -> None:
    """Publish a LoRA on the Hugging Face hub, with a model card, its configuration and its report."""
    from marble_cli.output import answering

    with importing():
        from marble_cli.push.folder import write_folder
        from marble_cli.push.upload import check_repo, upload

    out = ctx.with_resource(answering())
    check_repo(repo)
    folder = write_folder(target, repo, output or Path("push", repo))
    typer.echo(folder if dry_run else upload(folder, repo), file=out)
