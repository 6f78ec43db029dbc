"""`marble train --multirun launcher=slurm`: a job array with a task per cell, under stand-ins for SLURM."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from marble_cli.config.compose import load_resolved
from marble_cli.errors import RequestError
from marble_cli.launch.array import render_array, submit_array
from marble_cli.sweep.cells import PlannedSweep, plan_sweep
from marble_cli.sweep.record import read_sweep
from tests.random_runs import write_random_run

SLURM = ("launcher=slurm", "launcher.nproc=2", "launcher.warning=90", "rollout.groups=4", "model.device=cpu")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def planned(*words: str) -> PlannedSweep:
    own = [] if any(word.startswith("run.dir") for word in words) else ["run.dir=it's"]
    return plan_sweep(["rewards=[colorfulness,compressibility]", *SLURM, *own, *words], None)


def run_task(
    cluster: Path, folder: Path, task: int, code: int = 0, restarts: int = 0
) -> tuple[list[str], str]:
    """Run the script as SLURM runs a task of an array; return srun's words, and what was requeued."""
    (cluster / "srun").write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > "$FAKE/words"\nexit {code}\n')
    requeued = cluster / "requeued"
    requeued.unlink(missing_ok=True)
    # As SLURM numbers them: the last task has the id of the array.
    ids = {"SLURM_JOB_ID": "77", "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": str(task)}
    environment = {**os.environ, **ids, "SLURM_JOB_NODELIST": "n1", "SLURM_RESTART_COUNT": str(restarts)}
    done = subprocess.run(["bash", "job.sbatch"], cwd=folder, env=environment, check=False, timeout=20)
    assert done.returncode == code
    words = (cluster / "words").read_text().splitlines()
    return words, requeued.read_text() if requeued.exists() else ""


def test_every_task_runs_a_cell_and_is_requeued_by_itself(cluster: Path, tmp_path: Path) -> None:
    said = submit_array(planned("trainer.seed=0,1,2"), "auto")
    folder = tmp_path / "it's"
    assert said is not None
    assert said.startswith("job 77: 3 cells, each 1 x 2 processes\n")
    assert (cluster / "submitted").read_text() == f"{folder} --parsable job.sbatch\n"
    assert [cell.name for cell in read_sweep(folder).cells] == [f"trainer.seed={i}" for i in range(3)]
    options = [line for line in (folder / "job.sbatch").read_text().splitlines() if "#SBATCH" in line]
    expected = ("array=0-2", "output=slurm-%A_%a.out", "signal=USR1@90", "requeue", "job-name=it-s")
    assert {f"#SBATCH --{option}" for option in expected} <= set(options)
    for task in range(3):
        words, requeued = run_task(cluster, folder, task, code=143)
        cell = folder / f"trainer.seed={task}"
        assert words[-4:] == ["--config-name", str(cell / "job.yaml"), "--resume", "auto"]
        assert load_resolved(cell / "job.yaml").trainer.seed == task
        assert load_resolved(cell / "job.yaml").run.dir == str(cell)
        assert requeued == f"requeue 77_{task}\n"
    assert run_task(cluster, folder, 1, code=1)[1] == "", "a run that failed by itself stays out"


def test_cells_that_are_done_are_left_out(
    cluster: Path, base_overrides: list[str], randomise: Callable[..., None], tmp_path: Path
) -> None:
    words = [*base_overrides[:-2], "launcher=slurm", "trainer.steps=1", "run.dir=s"]
    once = plan_sweep([*words, "trainer.seed=0,1"], None)
    (tmp_path / "s" / "trainer.seed=0").mkdir(parents=True)
    write_random_run(once.cells[0].config, randomise)
    assert (submit_array(once, "auto") or "").startswith("job 77: 1 cells")
    assert run_task(cluster, tmp_path / "s", 0)[0][-3] == str(tmp_path / "s" / "trainer.seed=1" / "job.yaml")
    write_random_run(once.cells[1].config, randomise)
    assert submit_array(once, "auto") is None


def test_a_task_resumes_from_its_own_checkpoints_where_it_has_some(cluster: Path, tmp_path: Path) -> None:
    sweep = planned("trainer.seed=0,1")
    for cell in sweep.cells:
        Path(cell.config.run.dir).mkdir(parents=True)

    def resumed(resume: str, restarts: int = 0) -> str:
        (tmp_path / "it's" / "job.sbatch").write_text(render_array(sweep.sweep.folder, sweep.cells, resume))
        return run_task(cluster, tmp_path / "it's", 0, restarts=restarts)[0][-1]

    assert [resumed("never"), resumed("never", 1), resumed("/other/run")] == ["never", "auto", "/other/run"]
    (Path(sweep.cells[0].config.run.dir) / "checkpoints").mkdir()
    (Path(sweep.cells[0].config.run.dir) / "checkpoints" / "latest").touch()
    assert resumed("/other/run") == "auto"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("launcher=slurm", "launcher.nproc=1,2"), "cell launcher.nproc=2: asks for another job"),
        (("launcher=slurm", "model.device=cpu,cuda"), "cell model.device=cuda: asks for another job"),
        (("launcher=slurm,local",), "cell launcher=local: launcher is swept"),
        (
            (*SLURM[:2], "trainer.seed=0,1", "trainer.parallel=fsdp", "trainer.fsdp.replicas=3"),
            "cell trainer.seed=0: trainer.fsdp.replicas=3: 2 processes cannot",
        ),
    ],
)
def test_cells_that_cannot_be_one_array_are_refused(cluster: Path, words: tuple[str, ...], said: str) -> None:
    sweep = plan_sweep(["rewards=[colorfulness,compressibility]", *words], None)
    with pytest.raises(RequestError) as error:
        submit_array(sweep, "auto")
    assert said in str(error.value)
    assert not (cluster / "submitted").exists()


def test_the_array_s_own_option_is_not_taken_from_the_configuration() -> None:
    with pytest.raises(RequestError, match="launcher.extra.array=0-9: expected no array"):
        planned("trainer.seed=0,1", "launcher.extra.array=0-9")
