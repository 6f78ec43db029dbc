"""Submit a run as a job of SLURM.

The job has one task per process and is requeued until the run is done.
"""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from string import Template
from typing import Any

from marble_cli import __version__
from marble_cli.checkpoint.resume import find_checkpoint
from marble_cli.config.compose import dump
from marble_cli.config.schema import LauncherConfig, RunConfig
from marble_cli.errors import RequestError
from marble_cli.files import check_inside, check_writable, write_whole
from marble_cli.interrupts import EXIT_FILE
from marble_cli.lock import RunLock

SCRIPT, SETTINGS = "job.sbatch", "job.yaml"  # in a run's folder
# Seconds that the other tasks get to end after the first has ended; --kill-on-bad-exit would give them none.
WAIT = 60


class BashTemplate(Template):
    """A text with placeholders `@@{name}`, which do not clash with bash's own `$name`."""

    delimiter = "@@"


TEMPLATE = Path(__file__).with_name("job.sbatch.template")


def render_script(config: RunConfig, resume: str) -> str:
    """Return the batch script of a run; it reads the run's configuration from `job.yaml` in the run's folder.

    The options name no path: the script is submitted from the run's folder, which also gets its output. The
    script changes to the folder that the configuration's relative paths start from.
    """
    folder = Path(config.run.dir).absolute()
    return fill_template(
        config, resume, folder, sbatch_options(config),
        run=f"run={shlex.quote(str(folder))}",
        job="$SLURM_JOB_ID",
        has_checkpoint='[ "$run"/checkpoints/latest -nt "$run"/' + SCRIPT + " ]",
    )  # fmt: skip


def fill_template(
    config: RunConfig,
    resume: str,
    folder: Path,
    options: dict[str, Any],
    *,
    run: str,
    job: str,
    has_checkpoint: str,
) -> str:
    """Return a batch script.

    Args:
        config: of the run, or of any run of an array.
        resume: as `--resume` takes it.
        folder: that the script is submitted from.
        options: of sbatch by their long names.
        run: lines of bash that set `run` to the run's folder.
        job: the id by which the script requeues itself, as bash reads it.
        has_checkpoint: the condition of bash under which a job that starts from another run's checkpoint
            resumes from its own.
    """
    launcher = config.launcher
    lines = [f"#SBATCH --{name}{'' if value is True else f'={value}'}" for name, value in options.items()]
    cpus = "" if launcher.cpus_per_task is None else f" --cpus-per-task={launcher.cpus_per_task}"
    own = {"auto": "", "never": "[ $restarts -gt 0 ]"}.get(resume, has_checkpoint)
    return BashTemplate(TEMPLATE.read_text(encoding="utf-8")).substitute(
        options="\n".join(lines),
        version=__version__,
        folder=shlex.quote(str(folder)),
        script=SCRIPT,
        settings=SETTINGS,
        setup="".join(f"{line}\n" for line in launcher.setup),
        working_directory=shlex.quote(str(Path.cwd())),
        run=run,
        job=job,
        resume=shlex.quote(resume),
        resume_after_restart=f"if {own}; then resume=auto; fi\n" if own else "",
        exit_file=EXIT_FILE,
        tasks=launcher.nodes * launcher.nproc,
        nproc=launcher.nproc,
        cpus=cpus,
        wait=WAIT,
        python=shlex.quote(sys.executable),
        requeues=launcher.requeues,
    )


def sbatch_options(config: RunConfig) -> dict[str, Any]:
    """Return the options of sbatch by their long names; True is an option without a value."""
    launcher = config.launcher
    options = {
        "job-name": "".join(letter if letter.isalnum() else "-" for letter in config.run.name) or "marble",
        "nodes": launcher.nodes,
        "ntasks-per-node": launcher.nproc,
        "gpus-per-node": None if config.model.device == "cpu" else launcher.nproc,
        "cpus-per-task": launcher.cpus_per_task,
        "mem": launcher.memory,
        "time": launcher.time,
        "partition": launcher.partition,
        "account": launcher.account,
        # SLURM sends the signal to all tasks, but not to the script.
        "signal": f"USR1@{launcher.warning}" if launcher.warning else None,
        # Requeue the job after the failure of a node, too.
        "requeue": True,
        "open-mode": "append",
        "output": "slurm-%j.out",
    } | {name.replace("_", "-"): value for name, value in launcher.extra.items()}
    return {name: value for name, value in options.items() if value is not None and value is not False}


def submit(config: RunConfig, resume: str) -> str:
    """Write the job into the run's folder and submit it; return its id.

    Raises:
        RequestError: the folder cannot be written, is in use or holds another run, sbatch is not installed,
            or sbatch refuses the job.
    """
    folder = Path(config.run.dir)
    check_writable(folder, "run.dir=")
    check_inside(folder, (SCRIPT, SETTINGS))
    RunLock(folder).check()  # a job that is requeued reads the settings anew
    find_checkpoint(folder, config, resume)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / SETTINGS, dump(config))
    return submit_script(folder, render_script(config, resume))


def submit_script(folder: Path, script: str) -> str:
    """Write a batch script into a folder and submit it from there; return the job's id.

    Raises:
        RequestError: sbatch is not installed, or refuses the job.
    """
    write_whole(folder / SCRIPT, script)
    by_hand = (
        f"The job is written: {folder / SCRIPT}. "
        f"To submit it: cd {shlex.quote(str(folder))} && sbatch {SCRIPT}"
    )
    if (command := shutil.which("sbatch")) is None:
        raise RequestError(f"there is no sbatch on this machine. {by_hand}")
    done = subprocess.run(
        [command, "--parsable", SCRIPT], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RequestError(f"sbatch refused the job: {done.stderr.strip() or done.stdout.strip()} {by_hand}")
    return done.stdout.strip().split(";")[0]  # the name of the cluster may follow


def describe_job(job: str, launcher: LauncherConfig, folder: Path) -> str:
    """Return lines with the commands that show and stop a submitted job."""
    log = shlex.quote(str(folder / f"slurm-{job}.out"))
    return (
        f"job {job}: {launcher.nodes} x {launcher.nproc} processes\n"
        f"state:  squeue --job {job}\n"
        f"output: tail -F {log}\n"
        f"stop after the current step, with a checkpoint: scancel --signal=INT {job}"
    )
