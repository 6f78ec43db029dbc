"""One run resumed on different numbers of processes, and runs on several numbers from start to end."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import FaultRecorder
from tests.faults.job import Job

pytestmark = pytest.mark.long

LEG = 4  # steps
# What counts bytes would turn a pixel's rounding into another advantage; these rewards are smooth.
SETTINGS = (
    "preset=tiny", "rewards=[colorfulness,clipscore]", "balance=marble", "rollout.groups=4",
    "rollout.group_size=4",
    "rollout.batch_size=4", "trainer.micro_batch_size=4", "trainer.eval_every=0",
    "logging.wandb.mode=disabled",
)  # fmt: skip
REWARDS = ("reward/clipscore/mean", "reward/colorfulness/mean")
DDP, FSDP = ("trainer.parallel=ddp",), ("trainer.parallel=fsdp",)
LEGS: dict[str, list[tuple[int, tuple[str, ...]]]] = {  # processes and further settings of each
    "1 -> 2 -> 4 -> 1 processes": [(1, ()), (2, ()), (4, ()), (1, ())],
    "2 processes, ddp -> fsdp -> ddp": [(2, DDP), (2, FSDP), (2, DDP)],
    "fsdp on 1 -> 4 in two replicas -> 2 processes": [
        (1, FSDP),
        (4, (*FSDP, "trainer.fsdp.replicas=2")),
        (2, FSDP),
    ],
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The longest of these runs, in one process without a break."""
    job = Job(tmp_path_factory.mktemp("alone") / "run", (*SETTINGS, "trainer.steps=16"))
    job.finish()
    return job


@pytest.mark.parametrize("legs", LEGS)
def test_run_resumed_on_other_process_counts_trains_like_one_process(
    tmp_path: Path, alone: Job, record_fault: FaultRecorder, legs: str
) -> None:
    job = Job(tmp_path / "run", SETTINGS)
    for number, (processes, more) in enumerate(LEGS[legs], 1):
        job.processes = processes
        job.finish(f"trainer.steps={number * LEG}", *more)
    assert job.lost() == 0
    outcome = agreement(job.rows(), alone.rows()[: len(LEGS[legs]) * LEG])
    record_fault(
        f"a run continued on {legs}", len(LEGS[legs]) - 1, 0, f"{outcome} as in one process without a break",
        "distributed/test_ranks.py",
    )  # fmt: skip


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_train_like_one(
    tmp_path: Path, alone: Job, record_fault: FaultRecorder, processes: int
) -> None:
    job = Job(tmp_path / "run", (*SETTINGS, "trainer.steps=10"), processes)
    job.finish()
    outcome = agreement(job.rows(), alone.rows()[:10])
    record_fault(
        f"{processes} processes instead of one", 1, None, f"ten steps: {outcome}", "distributed/test_ranks.py"
    )


def agreement(
    rows: list[dict[str, Any]], others: list[dict[str, Any]], reward_keys: Sequence[str] = REWARDS
) -> str:
    """How far two runs agree, in words.

    Sums are rounded otherwise, and so is a pixel now and then. A gradient,
    in which samples nearly cancel one another, tells
    more of it than the loss does.
    """
    losses, norms, rewards = (
        max(abs(row[key] / other[key] - 1) for row, other in zip(rows, others, strict=True) for key in keys)
        for keys in (["loss/policy"], ["grad_norm"], reward_keys)
    )
    print(f"{losses=} {norms=} {rewards=}")
    assert losses < 1e-5
    assert norms < 5e-3
    assert rewards < 1e-3
    return f"the same losses to {losses:.0e}, gradient norms to {norms:.0e}, rewards to {rewards:.0e}"
