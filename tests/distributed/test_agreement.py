"""What ranks agree on, tried by two processes that share no folder: configuration, checkpoint, errors."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from marble_cli.checkpoint import store
from marble_cli.checkpoint.store import TrainerState
from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig
from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import ConfigError
from tests.distributed.nodes import train_on_nodes_without_a_shared_disk
from tests.distributed.processes import ends, job

PROGRAM = Path(__file__).with_name("agreement_ranks.py")


def test_two_ranks_agree_on_errors_and_checkpoint(tmp_path: Path) -> None:
    def tensors(group: str) -> dict[str, torch.Tensor]:
        drawn = {}
        for kind in (torch.float32, torch.float64, torch.bfloat16):
            name = str(kind).removeprefix("torch.")
            draw = torch.Generator().manual_seed(sum(map(ord, group + name)))
            drawn[name] = torch.randn(3, 2, generator=draw).to(kind)
        return drawn

    behaviour, optimizer, lora, ema = map(tensors, ("behaviour", "optimizer", "lora", "ema"))
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    balance = {
        "steps": torch.tensor(7),
        "seen": torch.tensor([True, False]),
        "none": torch.zeros(0, 2),
    }
    state = TrainerState(
        3, {"behaviour": behaviour, "optimizer": optimizer, "balance": balance}, {"best": 0.1}
    )
    for run in (folders[0] / "run", tmp_path / "copy"):
        store.save(run, state, lora, ema, keep_last=1, best=False)
        (run / "config.yaml").write_text("rewards: {a: {}, b: {}}\nbalance: {name: marble}\n")
    command = ["-W", "error", PROGRAM, "run", tmp_path / "copy"]
    for rank, (code, out, err) in enumerate(ends(job([command, command], folders))):
        assert (code, out) == (0, f"done {rank}\n"), err


def test_single_rank_raises_its_own_error() -> None:
    with Ranks() as ranks:
        assert ranks.all_gather_json([1, None]) == [[1, None]]
        error = ConfigError("no key")
        with pytest.raises(ConfigError) as caught, ranks.raise_together():
            raise error
        assert caught.value is error


def test_nodes_without_a_shared_disk_use_the_first_nodes_checkpoint(
    run_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_on_nodes_without_a_shared_disk(run_config, tmp_path, monkeypatch)


def test_error_on_all_ranks_is_printed_once(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(dump(run_config(f"data.root={tmp_path / 'nowhere'}", f"run.dir={tmp_path / 'run'}")))
    command = ("-m", "marble_cli", "train", "--config-name", file)
    first, second = ends(job([command, command], [tmp_path, tmp_path]))
    assert (first[0], second[0], second[2]) == (2, 2, "")
    assert first[2].count("nowhere") == first[2].count("marble:") == 1
    assert not (tmp_path / "run").exists()
