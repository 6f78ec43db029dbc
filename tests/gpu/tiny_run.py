"""Short runs of the embedded model, and how rows of their metrics are compared."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from marble_cli.config.schema import RunConfig
from marble_cli.run.loop import Trainer
from marble_cli.run.train import train

SHORT = (
    "preset=tiny", "balance=marble", "balance.refresh_every=3", "balance.shared_term=outside",
    "algorithm.behaviour.rate=0.3",
    "rollout.groups=4", "rollout.group_size=6", "rollout.steps=4", "rollout.batch_size=12",
    "trainer.micro_batch_size=12", "trainer.eval_prompts=2",
    "model.compile=false", "logging.wandb.mode=disabled", "logging.images_every=0", "run.name=test",
)  # fmt: skip
FOUR_STEPS = ("trainer.steps=4", "trainer.checkpoint_every=2", "trainer.eval_every=2", "trainer.keep_last=9")


def assert_near(row: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    """Compare the same metrics, relatively or absolutely; the gap of the QP is rounding."""
    assert row.keys() == other.keys()
    for key, value in row.items():
        expected = pytest.approx(value, rel=tolerance, abs=tolerance) if isinstance(value, float) else value
        assert key == "balance/gap" or other[key] == expected, key


def cut_and_resumed(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop a run by a signal in its third step, then run it to its end."""
    whole = Trainer.step

    def signalled(self: Trainer, step: int) -> dict[str, Any]:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(self, step)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", signalled)
        assert train(config, resume="auto") == 143
    assert (Path(config.run.dir) / "checkpoints" / "latest").read_text().strip() == "step-00000003"
    assert train(config, resume="auto") == 0
