"""Submit a sweep as a job array of SLURM: one task per cell, each requeued by itself."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path

from marble_cli.config.compose import dump
from marble_cli.errors import RequestError
from marble_cli.files import check_inside, write_whole
from marble_cli.launch.slurm import SCRIPT, SETTINGS, fill_template, sbatch_options, submit_script
from marble_cli.launch.sweep import check_cells
from marble_cli.sweep.cells import PlannedCell, PlannedSweep

# A task by its array: SLURM gives one of the tasks the id of the whole array.
TASK = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"


def render_array(folder: Path, cells: Sequence[PlannedCell], resume: str) -> str:
    """Return the batch script of an array; each task reads `job.yaml` in the folder of its cell.

    Args:
        folder: of the sweep, which the script is submitted from.
        cells: those to run, at least one.
        resume: as `--resume` takes it; a cell that has checkpoints resumes from these instead of a path's.

    Raises:
        RequestError: cells ask for jobs of different kinds.
    """
    first = cells[0].config
    for cell in cells:
        if _job(cell) != _job(cells[0]):
            raise RequestError(
                f"cell {cell.name}: asks for another job than cell {cells[0].name}. An array has one "
                "kind. Expected the same launcher and model.device; sweep them by one command each."
            )
    named = dataclasses.replace(first, run=dataclasses.replace(first.run, name=folder.name))
    folders = "".join(f"  {shlex.quote(cell.config.run.dir)}\n" for cell in cells)
    tasks = {"array": f"0-{len(cells) - 1}", "output": "slurm-%A_%a.out"}
    return fill_template(
        first, resume, folder, sbatch_options(named) | tasks,
        run=f"cells=(\n{folders})\nrun=${{cells[$SLURM_ARRAY_TASK_ID]}}",
        job=TASK,
        has_checkpoint='[ -e "$run"/checkpoints/latest ]',
    )  # fmt: skip


def _job(cell: PlannedCell) -> tuple[object, ...]:
    options = sbatch_options(cell.config) | {"job-name": None}
    return options, cell.config.launcher


def submit_array(planned: PlannedSweep, resume: str) -> str | None:
    """Submit the cells that are not done; return what to tell of the job, None if all are done.

    Raises:
        RequestError: a cell cannot run, a folder cannot be written, or sbatch is missing or refuses the job.
    """
    folder, cells = planned.sweep.folder, check_cells(planned, resume)
    if not cells:
        return None
    script = render_array(folder, cells, resume)
    for cell in cells:
        own = Path(cell.config.run.dir)
        check_inside(own, (SETTINGS,))
        own.mkdir(parents=True, exist_ok=True)
        write_whole(own / SETTINGS, dump(cell.config))
        planned.sweep.failures.pop(cell.name, None)
    check_inside(folder, (SCRIPT,))
    planned.sweep.write()
    job = submit_script(folder, script)
    launcher = cells[0].config.launcher
    log = shlex.quote(str(folder / f"slurm-{job}_0.out"))
    return (
        f"job {job}: {len(cells)} cells, each {launcher.nodes} x {launcher.nproc} processes\n"
        f"state:  squeue --job {job}\n"
        f"output of the first cell: tail -F {log}\n"
        f"at most 4 cells at a time: scontrol update ArrayTaskThrottle=4 JobId={job}\n"
        f"stop after the current step, with a checkpoint: scancel --signal=INT {job}\n"
        f"results: marble report {shlex.quote(str(folder))}"
    )
