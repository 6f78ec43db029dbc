"""The collectives of `Ranks` on two processes, and a run whose results do not depend on their number."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from marble_cli.checkpoint import store
from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig
from marble_cli.distributed.ranks import Ranks
from marble_cli.metrics.jsonl import read_rows
from marble_cli.policy.load import load_policy
from marble_cli.run.train import train
from tests.distributed.processes import ends, job
from tests.launch.local_run import ForkedRun

PROGRAM = Path(__file__).with_name("collective_ranks.py")


def test_collectives_give_equal_results_on_two_ranks() -> None:
    for rank, (code, out, err) in enumerate(ends(job([("-W", "error", PROGRAM)] * 2))):
        assert (code, out) == (0, f"done {rank}\n"), err


def test_single_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with Ranks() as ranks:
        assert (ranks.rank, ranks.world, ranks.is_main) == (0, 1, True)
        tensor = torch.tensor([1.0])
        assert ranks.all_reduce(tensor) is tensor
        assert ranks.all_gather(tensor) is tensor
        assert ranks.broadcast(tensor) is tensor
        assert (ranks.any(True), ranks.any(False)) == (True, False)
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_two_ranks_train_as_one_rank(run_config: Callable[..., RunConfig], tmp_path: Path, kind: str) -> None:
    """Refreshes, an amortised step and evaluations, through `marble train --nproc 2` in forks.

    With a LoRA one of the two rewards is a guard, with full weights both are trained.
    The rewards are smooth: one that counts bytes would turn a pixel's rounding into another advantage.
    """
    settings = [
        "rewards=[colorfulness]",
        "+rewards.some={plugin: colorfulness, sources: [text, general]}",
        "trainer.steps=3",
        "balance.refresh_every=2",
        "balance.shared_term=outside",
        "trainer.eval_every=3",
        "algorithm.behaviour.rate=0.3",
        "rollout.groups=4",
        "rollout.batch_size=3",
        "trainer.micro_batch_size=3",
        f"model.train={kind}",
        *(["rewards.some.role=guard", "rewards.some.margin=0.99"] if kind == "lora" else []),
    ]
    one, two = (run_config(*settings, f"run.dir={tmp_path / name}") for name in ("one", "two"))
    assert train(one, resume="auto") == 0
    run = ForkedRun(two, tmp_path)
    assert run.start().wait(300) == 0, run.log.read_text()
    rows, others = (read_rows(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [(row["step"], row["phase"]) for row in others] == [(row["step"], row["phase"]) for row in rows]
    assert [row["balance/refresh"] for row in rows if row["phase"] == "train"] == [1, 0, 1]
    acted = [row.get("balance/guard/some/acted") for row in rows if row["phase"] == "train"]
    assert acted == ([1, None, 1] if kind == "lora" else [None] * 3)
    clocks = ("time/", "throughput/", "balance/solve_seconds", "balance/gap")
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        near = 1e-5 if row["step"] <= 1 else 5e-3  # of scores around 160
        for key in row.keys() - {"step", "phase"}:
            if not key.startswith(clocks) and not key.endswith("_p"):  # a count of signs jumps with rounding
                assert other[key] == pytest.approx(row[key], rel=near, abs=near), (row["step"], key)
    start = load_policy(one.model, one.trainer.seed).trained_state()
    ours, theirs = (tmp_path / name / "checkpoints" / "step-00000003" for name in ("one", "two"))
    for name in store.weight_files(kind):
        states = [load_file(folder / name) for folder in (ours, theirs)]
        moved = sum((states[0][key] - value).square().sum() for key, value in start.items())
        apart = sum((states[0][key] - states[1][key]).square().sum() for key in start)
        assert moved > 0
        assert apart < 1e-4 * moved
    assert (tmp_path / "two" / "config.yaml").read_text() == dump(two).replace("nproc: 1", "nproc: 2")
