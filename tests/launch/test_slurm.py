"""`marble train launcher=slurm`: the script, and the jobs that it makes under stand-ins for SLURM."""

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from marble_cli.cli.app import app
from marble_cli.config.compose import dump, load_resolved
from marble_cli.config.enums import LauncherName
from marble_cli.config.schema import RunConfig
from marble_cli.errors import ConfigError, RequestError
from marble_cli.launch.slurm import render_script, sbatch_options, submit
from marble_cli.lock import RunLock
from marble_cli.metrics.jsonl import read_rows
from tests.distributed.processes import step
from tests.launch.cluster import job, stopped_at_its_limit, submitted


def test_job_at_its_time_limit_is_requeued_and_resumes(
    cluster: Path, run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    run = tmp_path / "my runs" / "it's $HOME"
    said = submitted(run_config("trainer.steps=40", "trainer.checkpoint_every=50", "rollout.steps=2"), run)
    assert said.startswith("job 77: 1 x 2 processes\n")
    assert (cluster / "submitted").read_text() == f"{run} --parsable job.sbatch\n"
    stopped_at_its_limit(cluster, run)
    assert step(run) < 40
    assert job(run, restarts=1).wait(120) == 0, (run / "slurm-77.out").read_text()
    assert (cluster / "requeued").read_text() == "requeue 77\n"
    assert (run / "slurm-77.out").read_text().startswith("hello\n")
    assert [row["step"] for row in read_rows(run / "metrics.jsonl")] == list(range(1, 41))
    launcher = load_resolved(run / "config.yaml").launcher
    assert (launcher.name, launcher.nodes, launcher.nproc) == (LauncherName.slurm, 1, 2)


def run_script(cluster: Path, text: str, folder: Path, code: int, restarts: int = 0) -> tuple[str, bool]:
    """Run a script whose srun ends with `code`; return srun's arguments, and whether the job was requeued."""
    (cluster / "srun").write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > "$FAKE/words"\nexit {code}\n')
    (cluster / "requeued").unlink(missing_ok=True)
    (folder / "job.sbatch").write_text(text)
    assert job(folder, restarts).wait(20) == code
    return (cluster / "words").read_text(), (cluster / "requeued").exists()


@pytest.mark.parametrize(
    ("code", "restarts", "again"),
    [
        (0, 0, False),
        (1, 0, False),
        (2, 0, False),
        (130, 0, False),
        (143, 0, True),
        (137, 3, True),
        (253, 0, True),
        (143, 20, False),
    ],
)
def test_exit_code_decides_about_the_requeue(
    cluster: Path, run_config: Callable[..., RunConfig], tmp_path: Path, code: int, restarts: int, again: bool
) -> None:
    config = run_config("launcher=slurm", f"run.dir={tmp_path}")
    assert run_script(cluster, render_script(config, "auto"), tmp_path, code, restarts)[1] is again


def test_requeued_job_resumes_from_its_own_checkpoints(
    cluster: Path, run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    def resumed(resume: str, restarts: int) -> str:
        text = render_script(run_config("launcher=slurm", f"run.dir={tmp_path}"), resume)
        return run_script(cluster, text, tmp_path, 143, restarts)[0].splitlines()[-1]

    assert [resumed("auto", turn) for turn in (0, 1)] == ["auto", "auto"]
    assert [resumed("never", turn) for turn in (0, 1)] == ["never", "auto"]
    named = str(tmp_path / "another run" / "step-00000003")
    (tmp_path / "checkpoints").mkdir()
    latest = tmp_path / "checkpoints" / "latest"
    latest.write_text("of before the job\n")
    os.utime(latest, (1, 1))
    # The job has no checkpoint of its own yet.
    assert [resumed(named, turn) for turn in (0, 1)] == [
        named,
        named,
    ]
    os.utime(latest, (2**32, 2**32))
    assert resumed(named, 1) == "auto"


def test_job_options_follow_the_configuration(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = run_config(
        "launcher=slurm",
        "launcher.nodes=2",
        "launcher.nproc=4",
        "launcher.time=1-12:00:00",
        "launcher.partition=gpu",
        "launcher.account=lab",
        "launcher.cpus_per_task=6",
        "launcher.memory=200G",
        "launcher.warning=90",
        "model.device=auto",
        "launcher.extra.qos=high",
        "launcher.extra.exclusive=true",
        "launcher.extra={gres: 'gpu:a100:4', gpus-per-node: null}",
        "run.name='a run; of mine'",
        f"run.dir={tmp_path}",
    )
    text = render_script(config, "auto")
    asked = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert asked == [
        "job-name=a-run--of-mine",
        "nodes=2",
        "ntasks-per-node=4",
        "cpus-per-task=6",
        "mem=200G",
        "time=1-12:00:00",
        "partition=gpu",
        "account=lab",
        "signal=USR1@90",
        "requeue",
        "open-mode=append",
        "output=slurm-%j.out",
        "qos=high",
        "exclusive",
        "gres=gpu:a100:4",
    ]
    srun = next(line for line in text.splitlines() if line.startswith("srun")).removesuffix("\\")
    assert {"--ntasks=8", "--ntasks-per-node=4", "--cpus-per-task=6", "--distribution=block"} <= set(
        shlex.split(srun)
    )
    assert (
        sbatch_options(run_config("launcher=slurm", "launcher.nproc=4", "model.device=auto"))["gpus-per-node"]
        == 4
    )
    # model.device is cpu.
    assert "gpus-per-node" not in sbatch_options(run_config("launcher=slurm", "launcher.nproc=4"))
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_missing_sbatch_is_refused_after_the_job_is_written(
    run_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, file = tmp_path / "run", tmp_path / "config.yaml"
    file.write_text(dump(run_config("launcher=slurm", "launcher.nproc=2", f"run.dir={run}")))
    monkeypatch.setenv("PATH", str(tmp_path))
    done = CliRunner().invoke(app, ["train", "--config-name", str(file)])
    assert isinstance(done.exception, RequestError)
    assert f"no sbatch on this machine. The job is written: {run}/job.sbatch" in str(done.exception)
    assert sorted(path.name for path in run.iterdir()) == ["job.sbatch", "job.yaml"]
    refused = CliRunner().invoke(app, ["train", "--config-name", str(file), "launcher.nproc=7"])
    assert isinstance(refused.exception, ConfigError)
    assert "7 processes cannot share the 6 images" in str(refused.exception)


def test_settings_of_a_job_that_trains_are_not_replaced(
    cluster: Path, run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """It reads them again when it is requeued."""
    run = tmp_path / "run"
    words = ("launcher=slurm", f"run.dir={run}")
    submit(run_config(*words), "auto")
    before = (run / "job.yaml").read_text()
    with RunLock(run) as held:
        held.acquire()
        with pytest.raises(RequestError, match="is in use"):
            submit(run_config(*words), "auto")
    (run / "config.yaml").write_text(before)
    with pytest.raises(RequestError, match="another configuration"):
        submit(run_config(*words, "trainer.seed=2"), "auto")
    with pytest.raises(RequestError, match="--resume never"):
        submit(run_config(*words), "never")
    assert (run / "job.yaml").read_text() == before


def test_refusal_by_sbatch_is_reported(
    cluster: Path, run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    (cluster / "sbatch").write_text("#!/bin/bash\necho 'invalid partition specified: gpux' >&2; exit 1\n")
    file = tmp_path / "config.yaml"
    file.write_text(dump(run_config("launcher=slurm", f"run.dir={tmp_path / 'run'}")))
    done = CliRunner().invoke(app, ["train", "--config-name", str(file)])
    assert isinstance(done.exception, RequestError)
    assert "sbatch refused the job: invalid partition specified: gpux" in str(done.exception)


def test_dry_run_prints_the_job_and_counts_all_processes(
    cluster: Path, run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    config = run_config(
        "launcher=slurm", "launcher.nodes=2", "rollout.groups=4", f"run.dir={tmp_path / 'run'}"
    )
    file.write_text(dump(config))
    done = CliRunner().invoke(app, ["train", "--config-name", str(file), "--dry-run"])
    assert done.exception is None, done.exception
    assert re.search(r"processes +2, each with 6 images", done.stdout)
    assert "#SBATCH --nodes=2\n" in done.stdout
    assert not (cluster / "submitted").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("launcher.partition='a b'", "without blanks or quotes"),
        ("launcher.extra.comment='x;\"y'", "without blanks or quotes"),
        ("+launcher.extra.Bad=1", "an option's long name"),
        ("launcher.warning=70000", "0 to 65535"),
        ("launcher.nodes=0", "at least 1"),
        ("launcher.cpus_per_task=0", "at least 1, or null"),
        ("launcher.grace=0", "above 0"),
        ("launcher.requeues=-1", "at least 0"),
        ("launcher.max_restarts=-1", "at least 0"),
    ],
)
def test_invalid_launcher_setting_is_refused(
    run_config: Callable[..., RunConfig], override: str, expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        run_config("launcher=slurm", override)


def test_slurm_setting_of_a_local_run_is_refused(run_config: Callable[..., RunConfig]) -> None:
    with pytest.raises(ConfigError, match=r"launcher\.partition=gpu: expected launcher=slurm beside it"):
        run_config("launcher.partition=gpu")
