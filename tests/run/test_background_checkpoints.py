"""Whole transformers are checkpointed beside training: steps go on, errors arrive, kills leave what was."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from marble_cli.checkpoint import store, tensor_files
from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig
from marble_cli.errors import RewardError, StorageError
from marble_cli.plan import memory as planning
from marble_cli.run.loop import Trainer
from marble_cli.run.train import train
from tests.distributed.processes import forks
from tests.run.runs import SETTINGS, assert_same_run

RunConfigMaker = Callable[..., RunConfig]
FULL = ("model.train=full", "trainer.steps=4", *SETTINGS, "optimizer.lr=0.001")


class Writer:
    """Holds back or breaks the files of one step's checkpoint.

    Attributes:
        release: the files are not written before this is set.
        fault: raised instead of writing one.
        threads: in which files were written.
    """

    def __init__(self, step: int) -> None:
        self.name, self.release = f"step-{step:08d}", threading.Event()
        self.fault: Exception | None = None
        self.threads = set[str]()
        self._write = tensor_files.write

    def __call__(self, file: Path, *rest: Any) -> None:
        self.threads.add(threading.current_thread().name)
        if self.name in str(file):
            assert self.release.wait(60)
            if self.fault:
                raise self.fault
        self._write(file, *rest)


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Writer:
    """The files of step 2's checkpoint wait for step 3."""
    held = Writer(2)
    monkeypatch.setattr(tensor_files, "write", held)
    return held


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Make a call at the start of a step."""

    def make(number: int, call: Callable[[], object]) -> None:
        step = Trainer.step

        def called(self: Trainer, now: int) -> dict[str, Any]:
            if now == number:
                call()
            return step(self, now)

        monkeypatch.setattr(Trainer, "step", called)

    return make


At = Callable[[int, Callable[[], object]], None]


@pytest.fixture(scope="module")
def whole(run_config: RunConfigMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose checkpoints were written while training waited."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "SHARE_OF_FREE", 0)
        written = Writer(0)
        patch.setattr(tensor_files, "write", written)
        assert train(run_config(*FULL, f"run.dir={folder}"), resume="auto") == 0
    assert written.threads == {"MainThread"}
    assert "the CPU's memory may not hold a copy of it" in (folder / "log.txt").read_text()
    return folder


def kept(run: Path) -> list[str]:
    """Everything in the folder of checkpoints, whose step folders all are valid."""
    for folder in store.steps(run):
        store.load(folder)
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_slow_writer_does_not_hold_the_next_step(
    run_config: RunConfigMaker, whole: Path, tmp_path: Path, writer: Writer, at: At
) -> None:
    run, seen = tmp_path / "run", list[list[str]]()

    def look() -> None:
        seen.append([folder.name for folder in store.steps(run)])
        writer.release.set()

    at(3, look)
    assert train(run_config(*FULL, f"run.dir={run}"), resume="auto") == 0
    assert seen == [[]], "step 3 began before the checkpoint of step 2 was there"
    assert "MainThread" not in writer.threads
    assert {"step-00000002", "step-00000004", "latest"} <= set(kept(run))
    assert_same_run(run, whole, "full")
    for file in sorted((whole / "checkpoints/step-00000002").rglob("*.safetensors")):
        assert (run / file.relative_to(whole)).read_bytes() == file.read_bytes(), "the state after step 2"


def test_error_of_the_writer_stops_the_run_before_the_next_step(
    run_config: RunConfigMaker, whole: Path, tmp_path: Path, writer: Writer, at: At
) -> None:
    """It arrives while step 3 is computed. That step is finished and kept, and the run resumes from it."""
    run = tmp_path / "run"
    writer.fault = OSError(28, "No space left on device")

    def fail() -> None:
        writer.release.set()
        for thread in threading.enumerate():
            if thread.name == "background":
                thread.join(60)

    at(3, fail)
    at(4, lambda: pytest.fail("a step after the error"))
    with pytest.raises(StorageError) as error:
        train(run_config(*FULL, f"run.dir={run}"), resume="auto")
    said = str(error.value)
    assert f"{run / 'checkpoints' / 'step-00000002'} could not be written: No space left on device" in said
    assert "continue with --resume auto. Earlier checkpoints are untouched." in said
    assert kept(run) == ["latest", "step-00000003"]


@pytest.mark.parametrize("steps", [2, 4])
def test_error_of_the_last_checkpoint_is_raised(
    run_config: RunConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    last = Writer(steps)
    last.fault = OSError(28, "No space left on device")
    last.release.set()
    monkeypatch.setattr(tensor_files, "write", last)
    run = tmp_path / "run"
    with pytest.raises(StorageError, match=f"step-0000000{steps} could not be written: No space left"):
        train(run_config(*FULL, f"trainer.steps={steps}", f"run.dir={run}"), resume="auto")
    assert [store.step_of(folder) for folder in store.steps(run)] == [2][: steps // 2 - 1]


def test_failed_step_waits_for_the_checkpoint_before_it(
    run_config: RunConfigMaker, tmp_path: Path, writer: Writer, at: At
) -> None:
    """Step 4 fails while the checkpoint of step 2 is being written: both that and step 3 are kept."""
    run = tmp_path / "run"

    def fail() -> None:
        threading.Timer(0.2, writer.release.set).start()
        raise RewardError("reward colorfulness is out of order")

    at(4, fail)
    with pytest.raises(RewardError, match="out of order"):
        train(run_config(*FULL, f"run.dir={run}"), resume="auto")
    assert kept(run) == ["best", "latest", "step-00000002", "step-00000003"]
    assert (run / "checkpoints" / "latest").read_text() == "step-00000003\n"


def test_failed_writer_is_logged_if_the_step_fails_too(
    run_config: RunConfigMaker, tmp_path: Path, writer: Writer, at: At
) -> None:
    run = tmp_path / "run"
    writer.fault = OSError(28, "No space left on device")

    def fail() -> None:
        writer.release.set()
        raise RewardError("reward colorfulness is out of order")

    at(3, fail)
    with pytest.raises(RewardError, match="out of order"):
        train(run_config(*FULL, f"run.dir={run}"), resume="auto")
    log = (run / "log.txt").read_text()
    assert "ERROR checkpointing step 2 on the way out failed too: " in log
    assert "No space left on device" in log


def test_signal_waits_for_the_checkpoint(
    run_config: RunConfigMaker, tmp_path: Path, writer: Writer, at: At
) -> None:
    run = tmp_path / "run"

    def stop() -> None:
        threading.Timer(0.2, writer.release.set).start()
        os.kill(os.getpid(), signal.SIGTERM)

    at(3, stop)
    assert train(run_config(*FULL, f"run.dir={run}"), resume="auto") == 143
    assert {"step-00000002", "step-00000003", "latest"} <= set(kept(run))
    assert (run / "checkpoints" / "latest").read_text() == "step-00000003\n"


def test_kill_during_a_write_leaves_the_checkpoint_before(
    run_config: RunConfigMaker, whole: Path, tmp_path: Path
) -> None:
    """SIGKILL after the first file of step 4's checkpoint: the run resumes from step 2, to the same bytes."""
    run, file = tmp_path / "run", tmp_path / "run.yaml"
    config = run_config(*FULL, f"run.dir={run}")
    file.write_text(dump(config))
    killed = forks().start([Path(__file__).with_name("killed_writer.py"), file, 4], dict(os.environ))
    killed.communicate(120)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in store.steps(run)] == ["step-00000002"]
    assert ".step-00000004.tmp" in kept(run)
    assert train(config, resume="auto") == 0
    assert not list((run / "checkpoints").glob(".*"))
    assert_same_run(run, whole, "full")


def test_lora_is_written_while_training_waits(
    run_config: RunConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Writer(0)
    monkeypatch.setattr(tensor_files, "write", written)
    assert train(run_config("trainer.steps=1", f"run.dir={tmp_path}"), resume="auto") == 0
    assert written.threads == {"MainThread"}


def test_free_memory_heeds_the_limits_of_control_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job of SLURM may have less than the machine: its files in the page cache can be dropped."""
    own = tmp_path / "own"
    own.write_text("1:name=systemd:/\n0::/slurm/job_1\n")
    groups = tmp_path / "groups"
    for folder, limit in ((groups / "slurm", "max"), (groups / "slurm" / "job_1", "5000")):
        folder.mkdir(parents=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("4000\n")
        (folder / "memory.stat").write_text("anon 1000\ninactive_file 3000\n")
    free = planning.free_memory(torch.device("cpu"))
    monkeypatch.setattr(planning, "OWN_GROUP", own)
    monkeypatch.setattr(planning, "GROUPS", groups)
    assert free is None or planning.free_memory(torch.device("cpu")) == 4000
