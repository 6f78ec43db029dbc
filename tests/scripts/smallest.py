"""Run scripts at their smallest size, in this process."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from marble_cli.cli.app import app

REWARDS = ("colorfulness", "compressibility")
SMALL = (
    f"rewards=[{','.join(REWARDS)}]",
    "rollout.groups=2",
    "rollout.group_size=2",
    "rollout.steps=2",
    "rollout.batch_size=4",
    "trainer.micro_batch_size=4",
    "trainer.times_per_image=1",
    "trainer.eval_prompts=2",
    "model.resolution=32",
)
# A tenth of the prompts of `preset=tiny`, of which each run reads all.
FEWER = tuple(f"data.sources.{name}.train={name}/test.jsonl" for name in ("general", "text", "compositional"))
BRIEF = ("trainer.steps=2", "trainer.eval_every=0", "logging.wandb.mode=disabled")


def run_in_process(patch: pytest.MonkeyPatch, script: Any) -> list[list[str]]:
    """Make `script` run its `marble` commands in this process; the returned list collects them."""
    commands: list[list[str]] = []

    def run(command: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        assert command[:3] == [sys.executable, "-m", "marble_cli"]
        commands.append(command[3:])
        code = app(command[3:], standalone_mode=False) or 0
        assert not (code and how.get("check")), command
        return subprocess.CompletedProcess(command, code)

    patch.setattr(script, "subprocess", SimpleNamespace(run=run, DEVNULL=subprocess.DEVNULL))
    return commands
