"""`marble train --multirun`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from marble_cli.cli.libraries import importing
from marble_cli.errors import RequestError

if TYPE_CHECKING:
    from marble_cli.sweep.cells import PlannedSweep


def train_sweep(
    words: Sequence[str], config_name: str | None, resume: str, *, dry_run: bool, print_config: bool
) -> int:
    """Run a sweep, submit it to SLURM, or print its cells; return the exit code."""
    from marble_cli.config.compose import dump
    from marble_cli.config.enums import LauncherName
    from marble_cli.launch.local import launched
    from marble_cli.sweep.cells import plan_sweep

    if launched():
        raise RequestError(
            "--multirun starts the processes of every cell itself. Expected no torchrun: set launcher.nproc, "
            "or launcher=slurm."
        )
    planned = plan_sweep(words, config_name)
    if print_config:
        for cell in planned.cells:
            typer.echo(f"--- # {cell.name}\n{dump(cell.config)}", nl=False)
        return 0
    from marble_cli.paths import ensure_home

    ensure_home(planned.sweep.folder / "home")  # before the import of a library that looks for it
    with importing():
        from marble_cli.launch.array import submit_array
        from marble_cli.launch.sweep import print_results, run_sweep
    if dry_run:
        _print_plans(planned, resume)
        return 0
    if planned.cells[0].config.launcher.name is LauncherName.slurm:
        if (job := submit_array(planned, resume)) is not None:
            typer.echo(job)
        else:
            print_results(planned.sweep)
        return 0
    return run_sweep(planned, resume)


def _print_plans(planned: "PlannedSweep", resume: str) -> None:
    """Print the plan of every cell that is not done, and the script of a job array."""
    from marble_cli.config.enums import LauncherName
    from marble_cli.launch.array import render_array
    from marble_cli.launch.sweep import announce, check_cells
    from marble_cli.plan.plan import plan
    from marble_cli.sweep.cells import naming

    waiting = check_cells(planned, resume)
    for number, cell in enumerate(planned.cells, 1):
        announce(planned, number, done=cell not in waiting)
        if cell in waiting:
            with naming(cell.name):
                plan(cell.config, cell.resume(resume))
    if waiting and waiting[0].config.launcher.name is LauncherName.slurm:
        typer.echo(render_array(planned.sweep.folder, waiting, resume), nl=False)
