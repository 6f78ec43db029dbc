"""A full disk: the message, the remaining files, and that the run resumes once there is space."""

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from marble_cli.checkpoint import store
from marble_cli.checkpoint.export import export
from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig
from marble_cli.errors import RewardError, StorageError
from marble_cli.metrics.jsonl import read_rows
from marble_cli.policy.embeddings import EmbeddingCache
from marble_cli.run.checkpoints import Checkpoints
from marble_cli.run.loop import Trainer
from marble_cli.run.recorder import RunRecorder
from marble_cli.run.train import train
from marble_cli.step.direction import Descent, Direction
from tests.distributed.processes import forks
from tests.run.disks import Disk, disks, files_of_at_most, mount

RunConfigMaker = Callable[..., RunConfig]

SETTINGS = ("trainer.checkpoint_every=1", "trainer.keep_last=9", "rollout.steps=2")


@pytest.fixture(params=disks(), ids=lambda kind: kind.__name__.lower())
def disk(
    request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Disk]:
    """A disk that can be filled; what is printed stays in memory, for which `capsys` sees."""
    folder = tmp_path / "disk"
    folder.mkdir()
    chosen: Disk = request.param(folder)
    if request.param is Disk:
        assert mount(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield chosen
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        if request.param is Disk:
            subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def whole(run_config: RunConfigMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of three steps on a disk with space."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(run_config("trainer.steps=3", *SETTINGS, f"run.dir={folder}"), resume="auto") == 0
    return folder


def assert_same_run(run: Path, whole: Path) -> None:
    for file in sorted((whole / "checkpoints" / "step-00000003").rglob("*.safetensors")):
        assert (run / file.relative_to(whole)).read_bytes() == file.read_bytes()
    rows, others = (read_rows(folder / "metrics.jsonl") for folder in (run, whole))
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    assert [row["loss/policy"] for row in rows] == [row["loss/policy"] for row in others]


def sizes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def test_full_disk_at_a_checkpoint_keeps_earlier_ones(
    run_config: RunConfigMaker, disk: Disk, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, save = disk.folder / "run", Checkpoints.save
    config = run_config("trainer.steps=3", *SETTINGS, f"run.dir={run}")
    needed = sizes(whole / "checkpoints" / "step-00000003")

    def filled(self: Checkpoints, best: bool) -> None:
        if self.progress.step == 2:
            disk.fill(leave=needed // 2)
        save(self, best)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", filled)
        with pytest.raises(StorageError) as error:
            train(config, resume="auto")
    said = str(error.value)
    assert error.value.exit_code == 1
    assert f"{run / 'checkpoints' / 'step-00000002'} could not be written: " in said
    assert disk.reason in said
    stated = int(said.split("It needs about ")[1].split(" bytes")[0].replace(",", ""))
    assert stated == pytest.approx(needed, rel=0.2)
    free = int(said.split("bytes; ")[1].split(" bytes")[0].replace(",", ""))
    assert free > 0
    assert disk.has_at_most(free, needed // 2)
    assert f"are free in {run / 'checkpoints'}." in said
    assert "continue with --resume auto" in said
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["latest", "step-00000001"]
    store.load(store.resolve(str(run)))
    disk.free()
    assert train(config, resume="auto") == 0
    assert_same_run(run, whole)


def test_full_disk_at_a_metrics_row_leaves_no_partial_row(
    run_config: RunConfigMaker, disk: Disk, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that does not fit leaves nothing, and its step is not checkpointed: none is lost or repeated."""
    run, step = disk.folder / "run", Trainer.step
    config = run_config("trainer.steps=3", *SETTINGS, f"run.dir={run}")

    def filled(self: Trainer, number: int) -> dict[str, Any]:
        metrics = step(self, number)
        if number == 2:
            file = self.folder / "metrics.jsonl"
            with file.open("a") as stream:  # fill the last page of the file except for 100 bytes
                stream.write("\n" * (4096 - file.stat().st_size % 4096 - 100))
            disk.fill()
        return metrics

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", filled)
        with pytest.raises(StorageError, match=f"metrics.jsonl could not be written: {disk.reason}"):
            train(config, resume="auto")
    assert (run / "metrics.jsonl").read_text().rstrip("\n").count("\n") == 0
    assert [path.name for path in store.steps(run)] == ["step-00000001"]
    with pytest.raises(StorageError, match=f"metrics.jsonl could not be written.*{disk.left} bytes are free"):
        train(config, resume="auto")  # still full: reported again before training
    assert [row["step"] for row in read_rows(run / "metrics.jsonl")] == [1]
    assert not list(run.glob(".*"))
    disk.free()
    assert train(config, resume="auto") == 0
    assert_same_run(run, whole)


def test_full_disk_at_pictures_only_warns(
    run_config: RunConfigMaker, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed picture does not stop the run."""
    run, pictures = disk.folder / "run", RunRecorder.pictures

    def filled(self: RunRecorder, *rest: Any, first: bool) -> None:
        disk.fill()
        pictures(self, *rest, first=first)
        disk.free()

    monkeypatch.setattr(RunRecorder, "pictures", filled)
    settings = ("trainer.steps=1", "trainer.eval_every=1", "logging.images_every=1")
    assert train(run_config(*settings, f"run.dir={run}"), resume="auto") == 0
    assert list(run.glob("samples/*.png")) == []
    assert all((folder / "samples.json").is_file() for folder in run.glob("samples/*"))  # those that fit
    log = (run / "log.txt").read_text()
    assert f"samples/step-00000001.png could not be written: {disk.reason}" in log
    assert "The run continues without these pictures." in log
    assert store.resolve(str(run)).name == "step-00000001"


def test_full_disk_at_a_skipped_batch_only_warns(
    run_config: RunConfigMaker, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, direct, skip = disk.folder / "run", Descent.direct, Trainer.skip

    def spoilt(self: Descent, *rest: Any) -> Direction:
        direction = direct(self, *rest)
        return replace(direction, gradient=direction.gradient * torch.nan)

    def filled(self: Trainer, *rest: Any) -> None:
        disk.fill()
        skip(self, *rest)
        disk.free()

    monkeypatch.setattr(Descent, "direct", spoilt)
    monkeypatch.setattr(Trainer, "skip", filled)
    assert train(run_config("trainer.steps=1", f"run.dir={run}"), resume="auto") == 0
    log = (run / "log.txt").read_text()
    assert "the weights stay as they are. " in log
    assert "skipped/step-00000001-rank-0.safetensors could not be written: " in log
    assert list(run.glob("skipped/*")) == []


def test_full_disk_at_embeddings_stops_with_the_option(
    run_config: RunConfigMaker, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, run = disk.folder / "cache", tmp_path / "run"
    config = run_config("trainer.steps=2", f"run.dir={run}", f"model.embedding_cache={cache}")
    write, files = EmbeddingCache.write, []

    def filled(self: EmbeddingCache, *rest: Any, **more: Any) -> None:
        if len(files) == 2:
            disk.fill(leave=2000)
        write(self, *rest, **more)
        files.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddingCache, "write", filled)
        with pytest.raises(StorageError) as error:
            train(config, resume="auto")
    said = str(error.value)
    assert said.startswith(f"{cache}/")
    assert "It needs about " in said
    assert "set model.embedding_cache= to a folder with more" in said
    assert not list(cache.rglob("*.writing"))
    disk.free()
    assert train(config, resume="auto") == 0


def test_failed_salvage_is_logged_and_the_first_error_raised(
    run_config: RunConfigMaker, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reward breaks, and then the checkpoint of the last finished step does not fit on the disk."""
    run, step = disk.folder / "run", Trainer.step

    def broken(self: Trainer, number: int) -> dict[str, Any]:
        if number == 2:
            disk.fill(leave=4096)
            raise RewardError("reward colorfulness is out of order")
        return step(self, number)

    monkeypatch.setattr(Trainer, "step", broken)
    config = run_config("trainer.steps=3", "trainer.checkpoint_every=9", f"run.dir={run}")
    with pytest.raises(RewardError, match="out of order"):
        train(config, resume="auto")
    log = (run / "log.txt").read_text()
    assert "ERROR checkpointing step 1 on the way out failed too: " in log
    assert "step-00000001 could not be written" in log


def test_file_size_limit_ends_the_command_with_one_message(
    run_config: RunConfigMaker, whole: Path, tmp_path: Path
) -> None:
    """With a limit such as a quota, `marble train` exits with 1, one message and no partial files."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / "step-00000003")
    config = run_config("trainer.steps=3", *SETTINGS, f"run.dir={run}")
    (run / "config.yaml").write_text(dump(config))
    largest = max(
        file.stat().st_size for file in (run / "checkpoints" / "step-00000002").rglob("*.safetensors")
    )
    command = [
        Path(__file__).with_name("limited.py"),
        largest - 1,
        "train",
        "--config-name",
        run / "config.yaml",
    ]
    limited = forks().start(command, os.environ | {"COLUMNS": "80"})
    _, err = limited.communicate(120)
    assert limited.returncode == 1, err
    assert "step-00000003 could not be written: " in err
    assert "File too large" in err
    assert "bytes are free in" in err
    assert "Traceback" not in err
    assert not list((run / "checkpoints").glob(".*"))
    store.load(run / "checkpoints" / "step-00000002")
    assert train(config, resume="auto") == 0
    assert_same_run(run, whole)


def test_full_disk_at_an_export_leaves_nothing(whole: Path, tmp_path: Path) -> None:
    with files_of_at_most(100), pytest.raises(StorageError, match="Choose another folder"):
        export(str(whole), tmp_path / "lora")
    assert list((tmp_path / "lora").iterdir()) == []
    assert export(str(whole), tmp_path / "lora").is_file()
