"""`marble train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marble_cli.cli.libraries import importing
from marble_cli.cli.options import Overrides

if TYPE_CHECKING:
    from marble_cli.config.schema import RunConfig

EPILOG = "Example:  marble train preset=tiny balance=weighted_sum trainer.steps=50"


def train(
    overrides: Overrides = None,
    config_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="A configuration of the package, or a run's config.yaml to repeat that run."
        ),
    ] = None,
    nproc: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Processes per machine (launcher.nproc).")
    ] = None,
    resume: Annotated[
        str,
        typer.Option(
            metavar="auto|never|PATH",
            help="auto continues the run in run.dir, never refuses to, PATH starts from a checkpoint.",
        ),
    ] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the plan; load no weights.")
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the composed configuration and stop.")
    ] = False,
    multirun: Annotated[
        bool,
        typer.Option(
            "--multirun",
            "-m",
            help="Start a run for each combination of values: key=a,b, range(0,3), choice(a,b), glob(*).",
        ),
    ] = False,
) -> None:
    """Train a model on several rewards, or continue a run."""
    from marble_cli.config.compose import compose, dump

    words = [*(overrides or []), *([f"launcher.nproc={nproc}"] if nproc else [])]
    if multirun:
        from marble_cli.cli.multirun import train_sweep

        raise typer.Exit(train_sweep(words, config_name, resume, dry_run=dry_run, print_config=print_config))
    config = compose(words, config_name)
    if print_config:
        typer.echo(dump(config), nl=False)
        return
    from marble_cli.config.enums import LauncherName
    from marble_cli.paths import ensure_home

    ensure_home(Path(config.run.dir) / "home")  # before the import of a library that looks for it
    from marble_cli.launch.local import check_one_machine, end_with_launcher, launch, launched

    launcher, starts_processes = config.launcher, not launched()
    if starts_processes and launcher.name is LauncherName.slurm:
        _submit_job(config, resume, dry_run=dry_run)
        return
    if dry_run:
        with importing():
            from marble_cli.plan.plan import plan

        plan(config, resume)
        return
    end_with_launcher()
    if starts_processes:
        check_one_machine(launcher)
    if starts_processes and launcher.nproc > 1:
        raise typer.Exit(launch(config, resume))
    with importing():
        from marble_cli.run.train import train as run

    raise typer.Exit(run(config, resume=resume))


def _submit_job(config: "RunConfig", resume: str, *, dry_run: bool) -> None:
    """Submit the run as a SLURM job, or print its plan and script with --dry-run."""
    from marble_cli.config.counts import processes
    from marble_cli.launch.slurm import describe_job, render_script, submit
    from marble_cli.plan.checks import check_geometry
    from marble_cli.plan.plan import plan

    if dry_run:
        plan(config, resume)
        typer.echo(render_script(config, resume), nl=False)
        return
    check_geometry(config.rollout, config.trainer, processes(config.launcher))
    typer.echo(describe_job(submit(config, resume), config.launcher, Path(config.run.dir)))
