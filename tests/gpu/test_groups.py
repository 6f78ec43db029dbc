"""Process groups on this device: NCCL among one or two ranks, FSDP2 against whole weights."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig
from marble_cli.distributed.ranks import Ranks
from tests.distributed.processes import free_port
from tests.distributed.test_ranks import test_two_ranks_train_as_one_rank as two_ranks_train_as_one_rank
from tests.gpu.processes import ROOT, environment

SHARDED = ROOT / "tests" / "distributed" / "sharded_ranks.py"


def require(world: int, device: torch.device) -> None:
    """Skip a test that needs more GPUs than there are; the CPU has room for any number of ranks."""
    if device.type == "cuda" and torch.cuda.device_count() < world:
        pytest.skip(f"there are fewer than {world} GPUs")


def test_collectives_in_a_group_of_one(device: torch.device) -> None:
    with Ranks(device.type, always=True):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            tensor = torch.arange(5, device=device, dtype=dtype)
            dist.all_reduce(tensor)
            dist.broadcast(tensor, 0)
            parts = [torch.empty_like(tensor)]
            dist.all_gather(parts, tensor)
            assert torch.equal(parts[0].cpu(), torch.arange(5, dtype=dtype))
        on_cpu = torch.ones(3)
        dist.all_reduce(on_cpu)  # over gloo, in the same group
        assert torch.equal(on_cpu, torch.ones(3))
    assert not dist.is_initialized()


@pytest.mark.parametrize("world", [1, 2])
def test_shards_compute_as_a_whole_policy(
    run_config: Callable[..., RunConfig], tmp_path: Path, device: torch.device, world: int
) -> None:
    """LoRA and full weights, with and without resharding; checkpoints fit either layout, bit for bit."""
    require(world, device)
    file = tmp_path / "config.yaml"
    file.write_text(dump(run_config("trainer.micro_batch_size=3", "algorithm.kl_coef=0.5")))
    group = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SHARDED), str(file), "1"],
            env=environment(**group, RANK=str(rank), LOCAL_RANK=str(rank)),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(world)
    ]
    try:
        answers = [process.communicate(timeout=200) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    for rank, (out, err) in enumerate(answers):
        assert f"done {rank}\n" in out, err


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_two_ranks_train_as_one_rank(
    run_config: Callable[..., RunConfig], tmp_path: Path, device: torch.device, kind: str
) -> None:
    require(2, device)
    two_ranks_train_as_one_rank(run_config, tmp_path, kind)
