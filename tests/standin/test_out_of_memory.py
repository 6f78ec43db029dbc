"""A rank that runs out of memory in mid-step ends the run with a checkpoint, whichever rank it is."""

from pathlib import Path

import pytest

from tests.standin.device import run
from tests.standin.test_runs import SHORT

PROGRAM = Path(__file__).parents[1] / "gpu" / "short_of_memory.py"
LARGE = ("rollout.groups=16", "rollout.group_size=6", "rollout.batch_size=48", "trainer.micro_batch_size=48")
STEPS = ("trainer.steps=3", "trainer.checkpoint_every=9", "trainer.eval_every=0")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_checkpoint_holds_the_last_whole_step(rank: str, tmp_path: Path) -> None:
    """Collectives end only when all ranks have come to them, so a wait for a rank that is gone would hang."""
    folder = tmp_path / "run"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(PROGRAM))
    done = run(
        *launcher, "train", *SHORT, *LARGE, *STEPS, f"run.dir={folder}",
        devices=2, RANK_WITHOUT_MEMORY=rank, FAKECUDA_MEET=str(tmp_path / "meet"),
    )  # fmt: skip
    assert done.code == 1, done.said
    assert "out of memory in the training of step 2" in done.said
    assert "Lower trainer.micro_batch_size" in done.said
    assert (folder / "checkpoints" / "latest").read_text().strip() == "step-00000001"
