"""`marble train`."""

from typing import Annotated

import typer

from marble_cli.cli.options import Overrides

EPILOG = "Example:  marble train preset=tiny balance=weighted_sum trainer.steps=50"


def train(
    overrides: Overrides = None,
    config_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="A config of the package, or a run's config.yaml to repeat that run."
        ),
    ] = None,
    nproc: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Processes on this machine; launcher.nproc.")
    ] = None,
    resume: Annotated[
        str,
        typer.Option(
            metavar="auto|never|PATH",
            help="Continue what run.dir holds, refuse to, or start from a checkpoint.",
        ),
    ] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the plan; load no weights.")
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the composed configuration and stop.")
    ] = False,
) -> None:
    """Train a model on several rewards, or continue a run."""
    from marble_cli.config.compose import compose, dump

    asked = [*(overrides or []), *([f"launcher.nproc={nproc}"] if nproc else [])]
    config = compose(asked, config_name)
    if print_config:
        typer.echo(dump(config), nl=False)
        return
    from marble_cli.distributed.launch import launch, launched

    if dry_run:
        from marble_cli.trainer.plan import plan

        plan(config)
        return
    if config.launcher.nproc > 1 and not launched():
        raise typer.Exit(launch(config, resume))
    from marble_cli.trainer.run import train as run

    raise typer.Exit(run(config, resume=resume))
