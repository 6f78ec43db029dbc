"""A run on two nodes that share no disk."""

from collections.abc import Callable
from pathlib import Path

import pytest

from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig
from marble_cli.metrics.jsonl import read_rows
from marble_cli.run.train import train
from tests.distributed.processes import ends, job

HERE = "/proc/self/cwd"  # an absolute path that differs per process, as local disks differ per node


def train_on_nodes_without_a_shared_disk(
    run_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that the first process's configuration and disk count; a later step elsewhere is refused."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    monkeypatch.chdir(folders[0])
    assert train(run_config(f"run.dir={HERE}/run"), resume="auto") == 0
    configs = (
        run_config("trainer.steps=4", f"run.dir={HERE}/run"),
        run_config("trainer.seed=5", f"run.dir={HERE}/elsewhere"),
    )
    files = [tmp_path / "first.yaml", tmp_path / "second.yaml"]
    for file, config in zip(files, configs, strict=True):
        file.write_text(dump(config))
    commands = [("-m", "marble_cli", "train", "--config-name", file) for file in files]

    first, second = ends(job(commands, folders[::-1]))  # the nodes are exchanged
    assert (first[0], second[0], second[2]) == (2, 2, "")
    assert first[2].count("marble:") == 1
    assert "holds a checkpoint of step 2 on" in first[2]
    assert list(folders[1].iterdir()) == []

    for code, _, err in ends(job(commands, folders)):
        assert code == 0, err
    assert [row["step"] for row in read_rows(folders[0] / "run" / "metrics.jsonl")] == [1, 2, 3, 4]
    assert list(folders[1].iterdir()) == []
