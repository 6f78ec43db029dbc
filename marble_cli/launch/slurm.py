"""A run as a job of SLURM: a script with one task for each process, which goes back into the queue until the run is done."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from marble_cli import __version__
from marble_cli.config.compose import dump
from marble_cli.config.schema import LauncherConfig, RunConfig
from marble_cli.errors import RequestError
from marble_cli.files import check_inside, check_writable, write_whole
from marble_cli.interrupts import EXIT_FILE

SCRIPT, SETTINGS = "job.sbatch", "job.yaml"  # in a run's folder
# Seconds that the other tasks have when one has ended; with --kill-on-bad-exit they had none.
WAIT = 60

BODY = """\
# Submitted by `marble train launcher=slurm`; by hand: cd {folder} && sbatch {script}
{setup}cd {here} || exit 1
run={folder}
restarts=${{SLURM_RESTART_COUNT:-0}}
resume={resume}
{again}
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
export {exit_file}="$run"/.exit-$SLURM_JOB_ID
rm -f "${exit_file}"
export OMP_NUM_THREADS=${{SLURM_CPUS_PER_TASK:-1}}
srun --ntasks={tasks} --ntasks-per-node={nproc} --distribution=block{cpus} --kill-on-bad-exit=0 --wait={wait} \\
  bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE={tasks} LOCAL_WORLD_SIZE={nproc}; exec "$@"' rank \\
  {python} -m marble_cli train --config-name "$run"/{settings} --resume "$resume"
code=$?
# The first process that ended by itself says why; srun's code may be that of others, which were killed because of it.
if [ -s "${exit_file}" ]; then code=$(cat "${exit_file}"); fi
rm -f "${exit_file}"

# From 128 on a signal ended the run: it was asked to stop in time, or a process was killed. 130 is a wish to stop for good.
if [ $code -ge 128 ] && [ $code -ne 130 ] && [ $restarts -lt {requeues} ]; then
  echo "marble: exit code $code; back into the queue, restart $((restarts + 1)) of {requeues}"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
"""


def script(config: RunConfig, resume: str) -> str:
    """The batch script of a run, which expects the run's configuration as `job.yaml` beside it.

    Its options name no path: it is submitted from the run's folder, where its output goes, and changes to the folder that
    relative paths of the configuration are meant from.
    """
    launcher, folder = config.launcher, Path(config.run.dir).absolute()
    lines = [
        f"#SBATCH --{name}{'' if value is True else f'={value}'}" for name, value in options(config).items()
    ]
    cpus = "" if launcher.cpus_per_task is None else f" --cpus-per-task={launcher.cpus_per_task}"
    body = BODY.format(
        folder=shlex.quote(str(folder)), here=shlex.quote(str(Path.cwd())), script=SCRIPT, settings=SETTINGS,
        setup="".join(f"{line}\n" for line in launcher.setup), resume=shlex.quote(resume), again=_again(resume),
        tasks=launcher.nodes * launcher.nproc, nproc=launcher.nproc, cpus=cpus, wait=WAIT, requeues=launcher.requeues,
        python=shlex.quote(sys.executable), exit_file=EXIT_FILE,
    )  # fmt: skip
    return "\n".join(["#!/bin/bash", *lines, f"# marble {__version__}", body])


def options(config: RunConfig) -> dict[str, Any]:
    """Options of sbatch by their long names; True is one without a value."""
    launcher = config.launcher
    asked = {
        "job-name": "".join(letter if letter.isalnum() else "-" for letter in config.run.name) or "marble",
        "nodes": launcher.nodes,
        "ntasks-per-node": launcher.nproc,
        "gpus-per-node": None if config.model.device == "cpu" else launcher.nproc,
        "cpus-per-task": launcher.cpus_per_task,
        "mem": launcher.memory,
        "time": launcher.time,
        "partition": launcher.partition,
        "account": launcher.account,
        "signal": f"USR1@{launcher.warning}" if launcher.warning else None,  # to all tasks, not to the script
        "requeue": True,  # also after a node has failed
        "open-mode": "append",
        "output": "slurm-%j.out",
    } | {name.replace("_", "-"): value for name, value in launcher.extra.items()}
    return {name: value for name, value in asked.items() if value is not None and value is not False}


def _again(resume: str) -> str:
    """A job that comes back goes on with what it has done itself."""
    if resume == "auto":
        return ""
    done = '[ "$run"/checkpoints/latest -nt "$run"/' + SCRIPT + " ]"
    return f"if {'[ $restarts -gt 0 ]' if resume == 'never' else done}; then resume=auto; fi\n"


def submit(config: RunConfig, resume: str) -> str:
    """Write the job into the run's folder and submit it; returns its id.

    Raises:
        RequestError: the folder cannot be written, there is no sbatch here, or it refuses the job.
    """
    folder = Path(config.run.dir)
    check_writable(folder, "run.dir=")
    check_inside(folder, (SCRIPT, SETTINGS))
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / SETTINGS, dump(config))
    write_whole(folder / SCRIPT, script(config, resume))
    by_hand = f"The job is written: {folder / SCRIPT}. To submit it: cd {shlex.quote(str(folder))} && sbatch {SCRIPT}"
    if (command := shutil.which("sbatch")) is None:
        raise RequestError(f"there is no sbatch on this machine. {by_hand}")
    done = subprocess.run(
        [command, "--parsable", SCRIPT], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RequestError(f"sbatch refused the job: {done.stderr.strip() or done.stdout.strip()} {by_hand}")
    return done.stdout.strip().split(";")[0]  # the cluster's name may follow


def how_to_follow(job: str, launcher: LauncherConfig, folder: Path) -> str:
    """What can be done with a submitted job, in lines."""
    log = shlex.quote(str(folder / f"slurm-{job}.out"))
    return (
        f"job {job}: {launcher.nodes} x {launcher.nproc} processes\n"
        f"state:  squeue --job {job}\n"
        f"output: tail -F {log}\n"
        f"stop after the step under way, with a checkpoint: scancel --signal=INT {job}"
    )
