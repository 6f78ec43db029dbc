"""What ranks agree on, tried by two real processes that share no folder: configuration, checkpoint, errors."""

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
from marble_cli.metrics.jsonl import read_rows
from marble_cli.run.train import train
from tests.distributed.processes import ends, job

HERE = "/proc/self/cwd"  # an absolute path that each process has for itself, as nodes have theirs

AGREEMENT = """
import sys
from pathlib import Path
import torch
from marble_cli.checkpoint import store
from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import CheckpointError, ConfigError, PeerError, RequestError
from marble_cli.run.agreement import agree_on_checkpoint, read_checkpoint

run = Path(sys.argv[1])

def outcome(ranks, *errors):
    try:
        with ranks.raise_together():
            if errors[ranks.rank]:
                raise errors[ranks.rank]
    except Exception as error:
        return type(error).__name__, getattr(error, "exit_code", None), str(error)

with Ranks() as ranks:
    me = ranks.rank
    assert ranks.all_gather_json({"rank": me, "text": "ü" * me}) == [{"rank": 0, "text": ""}, {"rank": 1, "text": "ü"}]
    assert ranks.broadcast_json(me if me == 0 else None) == 0
    assert outcome(ranks, None, None) is None
    told = outcome(ranks, None, ConfigError("no key"))
    assert told == [("PeerError", 2, "process 1 failed: no key"), ("ConfigError", 2, "no key")][me], told
    told = outcome(ranks, ValueError("odd"), ConfigError("no key"))
    assert told == [("ValueError", None, "odd"), ("PeerError", 1, "process 0 failed: odd")][me], told
    with ranks.raise_together():  # they are still in step
        pass

    step = run / "checkpoints" / "step-00000003"
    assert agree_on_checkpoint(ranks, run, step if me == 0 else None, named=False) == step
    for turn in ("absent", "whole", "damaged"):  # of the second rank's disk
        if me == 1 and turn != "absent":
            import shutil
            shutil.copytree(sys.argv[2], run, dirs_exist_ok=True)
        if me == 1 and turn == "damaged":
            (step / "optimizer.safetensors").write_bytes(b"short")
        stored = read_checkpoint(ranks, step)
        assert (stored.state.step, stored.state.info, stored.rewards) == (3, {"best": 0.1}, ["a", "b"]), turn
        assert stored.balance["name"] == "marble"
        groups = {**stored.state.tensors, "lora": stored.weights, "ema": stored.ema}
        balance = groups.pop("balance")  # whole numbers and scalars too, as PCD's
        assert balance["steps"].dtype == torch.int64 and torch.equal(balance["steps"], torch.tensor(7)), turn
        assert balance["seen"].tolist() == [True, False] and balance["none"].shape == (0, 2), turn
        assert sorted(groups) == ["behaviour", "ema", "lora", "optimizer"]
        for group, tensors in groups.items():
            assert sorted(tensors) == ["bfloat16", "float32", "float64"]
            for kind, tensor in tensors.items():
                draw = torch.Generator().manual_seed(sum(map(ord, group + kind)))
                expected = torch.randn(3, 2, generator=draw).to(getattr(torch, kind))
                assert tensor.dtype == expected.dtype and torch.equal(tensor, expected), (turn, group, kind)

    if me == 1:
        (run / "checkpoints" / "step-00000007").mkdir()
    try:
        agree_on_checkpoint(ranks, run, step, named=False)
    except (RequestError, PeerError) as error:
        assert isinstance(error, RequestError if me == 0 else PeerError)
        for part in ("step 7", "step 3", str(run.absolute()) if me == 0 else "", "first node"):
            assert part in str(error), str(error)
    else:
        raise AssertionError("the later step was not noticed")
    assert agree_on_checkpoint(ranks, run, step, named=True) == step
    (step / "state.json").unlink(missing_ok=True)
    try:
        read_checkpoint(ranks, step)
    except (CheckpointError, PeerError) as error:
        assert isinstance(error, CheckpointError if me == 0 else PeerError) and error.exit_code == 2
    else:
        raise AssertionError("read what is not there")
print("done", me)
"""


def test_two_ranks_agree(tmp_path: Path) -> None:
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
    command = ["-W", "error", "-c", AGREEMENT, "run", tmp_path / "copy"]
    for rank, (code, out, err) in enumerate(ends(job([command, command], folders))):
        assert (code, out) == (0, f"done {rank}\n"), err


def test_one_rank_agrees_with_itself() -> None:
    with Ranks() as ranks:
        assert ranks.all_gather_json([1, None]) == [[1, None]]
        error = ConfigError("no key")
        with pytest.raises(ConfigError) as caught, ranks.raise_together():
            raise error
        assert caught.value is error


def test_nodes_that_share_no_disk(
    run_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process's configuration counts, and its disk; a run that is further on elsewhere is not started over."""
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

    first, second = ends(job(commands, folders[::-1]))  # the other node is the first now
    assert (first[0], second[0], second[2]) == (2, 2, "")
    assert first[2].count("marble:") == 1
    assert "holds a checkpoint of step 2 on" in first[2]
    assert list(folders[1].iterdir()) == []

    for code, _, err in ends(job(commands, folders)):
        assert code == 0, err
    assert [row["step"] for row in read_rows(folders[0] / "run" / "metrics.jsonl")] == [1, 2, 3, 4]
    assert list(folders[1].iterdir()) == []


def test_what_all_ranks_find_wrong_is_told_once(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(dump(run_config(f"data.root={tmp_path / 'nowhere'}", f"run.dir={tmp_path / 'run'}")))
    command = ("-m", "marble_cli", "train", "--config-name", file)
    first, second = ends(job([command, command], [tmp_path, tmp_path]))
    assert (first[0], second[0], second[2]) == (2, 2, "")
    assert first[2].count("nowhere") == first[2].count("marble:") == 1
    assert not (tmp_path / "run").exists()
