"""A run that runs out of the device's memory in mid-step leaves a checkpoint, says what to lower, resumes."""

import subprocess
import sys
from pathlib import Path

from marble_cli.config.compose import compose
from marble_cli.metrics.jsonl import read_rows
from marble_cli.run.train import train
from tests.gpu.processes import environment

PROGRAM = Path(__file__).with_name("short_of_memory.py")


def test_a_run_out_of_memory_leaves_a_checkpoint_and_resumes(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    """The allocator itself fails; the checkpoint is written while the bound still holds."""
    # Activations of 96 images are hundreds of megabytes, far more than the allocator keeps in free blocks.
    large = ("rollout.groups=16", "rollout.batch_size=96", "trainer.micro_batch_size=96")
    steps = ("trainer.steps=3", "trainer.checkpoint_every=9", "trainer.eval_every=0")
    overrides = [*tiny_overrides, *large, *steps, f"run.dir={tmp_path / 'run'}"]
    command = [sys.executable, str(PROGRAM), "train", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment())
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1, said
    assert "out of memory in the training of step 2" in said
    assert "Lower trainer.micro_batch_size" in said
    assert "Traceback" not in said
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text().strip() == "step-00000001"
    smaller = compose([*overrides, "trainer.micro_batch_size=12"])
    assert train(smaller, resume="auto") == 0
    assert [row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]
