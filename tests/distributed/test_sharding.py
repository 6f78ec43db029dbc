"""FSDP2 and HSDP on real processes: velocities, gradients, directions and checkpoints are those of a whole policy."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig
from tests.distributed.test_ranks import free_port


@pytest.mark.parametrize(("world", "replicas"), [(2, 1), pytest.param(4, 2, marks=pytest.mark.long)])
def test_shards_compute_what_a_whole_policy_does(
    run_config: Callable[..., RunConfig], tmp_path: Path, world: int, replicas: int
) -> None:
    """LoRA and full weights, with and without resharding; checkpoints of either layout fit the other, bit for bit."""
    file = tmp_path / "config.yaml"
    file.write_text(dump(run_config("trainer.micro_batch_size=3", "algorithm.kl_coef=0.5")))
    common = {
        **os.environ, "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    job = Path(__file__).with_name("sharded_ranks.py")
    processes = [
        subprocess.Popen(
            [sys.executable, job, file, str(replicas)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        answers = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, (out, err) in enumerate(answers):
        assert f"done {rank}\n" in out, err
