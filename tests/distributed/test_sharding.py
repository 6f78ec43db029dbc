"""FSDP2 and HSDP on real processes compute what a whole policy computes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig
from tests.distributed.processes import ends, job


@pytest.mark.parametrize(("world", "replicas"), [(2, 1), pytest.param(4, 2, marks=pytest.mark.long)])
def test_shards_compute_as_a_whole_policy(
    run_config: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    world: int,
    replicas: int,
) -> None:
    """LoRA with and without resharding, and full weights; checkpoints fit either layout, bit for bit."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    file = tmp_path / "config.yaml"
    file.write_text(dump(run_config("trainer.micro_batch_size=3", "algorithm.kl_coef=0.5")))
    command = (Path(__file__).with_name("sharded_ranks.py"), file, replicas)
    for rank, (_, out, err) in enumerate(ends(job([command] * world), timeout=300)):
        assert f"done {rank}\n" in out, err
