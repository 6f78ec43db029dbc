"""Stand-ins for SLURM's commands, and jobs that run under them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from marble_cli.cli.app import app
from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig
from tests.distributed.processes import forks, step, wait_for

COMMANDS = {
    # Prints the job's id, as with `--parsable`.
    "sbatch": 'echo "$PWD $*" >> "$FAKE/submitted"; echo "77;cluster"',
    "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; echo other; else echo "$*" >> "$FAKE/requeued"; fi',
    # Starts the tasks, sends them the signal that SLURM sends a step, and leaves with the highest code.
    "srun": """
tasks=(); command=()
for word in "$@"; do
  case $word in
    --ntasks=*) count=${word#*=} ;;
    --*) [ ${#command[@]} -gt 0 ] && command+=("$word") ;;
    *) command+=("$word") ;;
  esac
done
trap 'kill -USR1 "${tasks[@]}"' USR1
for ((i = 0; i < count; i++)); do
  SLURM_PROCID=$i SLURM_LOCALID=$i "${command[@]}" & tasks+=($!)
done
echo $$ > "$FAKE/srun.pid"
highest=0
for task in "${tasks[@]}"; do
  while true; do
    wait "$task"; code=$?
    kill -0 "$task" 2> /dev/null || break  # or a signal ended the waiting
  done
  [ $code -gt $highest ] && highest=$code
done
exit $highest
""",
}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a folder of stand-ins on PATH; they record their calls in it."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    for name, body in COMMANDS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    forks().write_python(folder / "python")
    monkeypatch.setattr(sys, "executable", str(folder / "python"))  # of the tasks
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(folder))
    return folder


def job(run: Path, restarts: int = 0) -> "subprocess.Popen[bytes]":
    """Start the job's script as SLURM does."""
    environment = {**os.environ, "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n[1-2]"}
    if restarts:
        environment["SLURM_RESTART_COUNT"] = str(restarts)
    with (run / "slurm-77.out").open("ab") as output:
        return subprocess.Popen(
            ["bash", "job.sbatch"],
            cwd=run,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )


def submitted(config: RunConfig, run: Path) -> str:
    """Submit `config` as a job of two processes that writes to `run`; return the command's output."""
    config.run.dir, file = str(run), run.parent.parent / f"{run.name}.yaml"
    file.write_text(dump(config))
    asked = ["train", "--config-name", str(file), "launcher=slurm", "launcher.nproc=2"]
    done = CliRunner().invoke(app, [*asked, 'launcher.setup=["export GREETING=hello", "echo $GREETING"]'])
    assert done.exception is None, done.exception
    return done.stdout


def stopped_at_its_limit(cluster: Path, run: Path) -> None:
    """Start the job, send the warning signal after two steps, and check how it stops."""
    first, output = job(run), run / "slurm-77.out"
    wait_for(lambda: step(run) >= 2 or first.poll() is not None, "two steps")
    os.kill(int((cluster / "srun").with_suffix(".pid").read_text()), signal.SIGUSR1)
    assert first.wait(60) == 143, output.read_text()
    assert (cluster / "requeued").read_text() == "requeue 77\n"
    assert "back into the queue, restart 1 of 20" in output.read_text()
    assert (run / "checkpoints" / "latest").read_text() == f"step-{step(run):08d}\n"
