"""Full weights in shards are checkpointed by all ranks, file by file, for any number of ranks and layout."""

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from marble_cli.checkpoint import store
from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig
from tests.distributed.processes import ends, job

PROGRAM = Path(__file__).with_name("parts_ranks.py")
SETTINGS = (
    "model.train=full",
    "rewards=[colorfulness]",
    "trainer.checkpoint_every=1",
    "trainer.keep_last=9",
    "optimizer.lr=0.01",
    "rollout.steps=2",
)


class Runs:
    """Runs the program in one folder, and returns what each rank printed."""

    def __init__(self, run_config: Callable[..., RunConfig], folder: Path):
        self.run_config, self.folder = run_config, folder

    def train(
        self, world: int, steps: int, parallel: str, spoilt: int = 0, culprit: int = -1, number: int = 0
    ) -> list[str]:
        settings = (f"trainer.steps={steps}", f"trainer.parallel={parallel}", f"run.dir={self.folder}")
        file = self.folder.with_suffix(".yaml")
        file.write_text(dump(self.run_config(*SETTINGS, *settings)))
        done = ends(job([(PROGRAM, file, spoilt, culprit, number)] * world))
        for rank, (code, out, err) in enumerate(done):
            assert "ended" in out if not number or rank != culprit else code == -number, err
        return [out for _, out, _ in done]


@pytest.fixture
def runs(
    run_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Runs]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return lambda name: Runs(run_config, tmp_path / name)


def checkpoint(runs: Runs, step: int) -> dict[str, dict[str, torch.Tensor]]:
    state, trained, ema = store.load(runs.folder / "checkpoints" / f"step-{step:08d}")
    return {**state.tensors, "trained": trained, "ema": ema}


def test_any_number_of_ranks_writes_and_reads(runs: Callable[[str], Runs]) -> None:
    """One process with ddp throughout, against fsdp on 2 ranks and then on 3."""
    alone, changing = runs("alone"), runs("changing")
    assert "ended 0" in alone.train(1, 2, "ddp")[0]
    for world, step, parallel in ((2, 1, "fsdp"), (3, 2, "fsdp")):
        for out in changing.train(world, step, parallel):
            assert "ended 0" in out
            files, most = map(int, re.findall(r"files (\d+) most (\d+)", out)[0])
            assert files > 1  # every rank writes
            assert most <= 20_000  # a file at a time, of 445,000 bytes in all
    for step in (1, 2):
        one, other = checkpoint(alone, step), checkpoint(changing, step)
        assert one.keys() == other.keys()
        for group, tensors in one.items():
            assert tensors.keys() == other[group].keys()
            for name, tensor in tensors.items():
                # In norms: AdamW makes whole steps of single gradients that are nothing but rounding.
                apart, size = (other[group][name] - tensor).norm(), tensor.norm()
                assert apart <= (1e-1 if group == "optimizer" else 1e-2) * size, (group, name)


def test_rank_that_cannot_write_leaves_the_checkpoint_before(runs: Callable[[str], Runs]) -> None:
    """The run then goes on with one process and ddp."""
    whole = runs("run")
    outs = whole.train(2, 2, "fsdp", spoilt=2, culprit=1)
    assert "ended PeerError: process 1 failed: " in outs[0]
    assert "ended StorageError: " in outs[1]
    for out in outs:
        assert "No space left on device" in out
        assert "Earlier checkpoints are untouched" in out
    checkpoints = whole.folder / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["latest", "step-00000001"]
    assert store.newest_valid(whole.folder)[0] == checkpoints / "step-00000001"
    assert all("ended 0" in out for out in whole.train(1, 2, "ddp"))
    assert store.step_of(store.resolve(str(whole.folder))) == 2


def test_rank_killed_while_it_writes_leaves_the_checkpoint_before(runs: Callable[[str], Runs]) -> None:
    """The other rank ends by itself: neither its training nor its thread that writes waits for ever."""
    whole = runs("run")
    outs = whole.train(2, 4, "fsdp", spoilt=2, culprit=1, number=signal.SIGKILL)
    assert "ended LostError: " in outs[0]
    assert [path.name for path in store.steps(whole.folder)] == ["step-00000001"]
    assert store.newest_valid(whole.folder)[0] == whole.folder / "checkpoints" / "step-00000001"
    assert "ended 0" in whole.train(1, 2, "ddp")[0]
    assert store.step_of(store.resolve(str(whole.folder))) == 2
