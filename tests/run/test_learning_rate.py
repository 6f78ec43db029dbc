"""The learning rate of a step: against torch's schedulers, in the update, and in a run that is resumed."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from marble_cli.config.enums import DecaySchedule
from marble_cli.config.schema import OptimizerConfig, RunConfig
from marble_cli.metrics.jsonl import read_rows
from marble_cli.run.learning_rate import learning_rate
from marble_cli.run.train import train
from tests.run.runs import SETTINGS, assert_same_run, copied
from tests.run.weights import weights

RunConfigMaker = Callable[..., RunConfig]


def rates(steps: int, **settings: Any) -> list[float]:
    optimizer = OptimizerConfig(lr=0.3, **settings)
    return [learning_rate(optimizer, step, steps) for step in range(1, steps + 1)]


@pytest.mark.parametrize("schedule", list(DecaySchedule))
@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (0, 7), (1, 7), (3, 9), (6, 7), (9, 4)])
def test_rates_are_those_of_torch_schedulers(schedule: DecaySchedule, warmup: int, steps: int) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=0.3)
    left = max(1, steps - warmup)
    after = {
        DecaySchedule.constant: lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0),
        DecaySchedule.cosine: lr_scheduler.CosineAnnealingLR(optimizer, T_max=left),
        DecaySchedule.linear: lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=left),
    }[schedule]
    start = 1 / (warmup + 1)
    scheduler: Any = after
    if warmup:
        rise = lr_scheduler.LinearLR(optimizer, start, 1.0, total_iters=warmup)
        scheduler = lr_scheduler.SequentialLR(optimizer, [rise, after], [warmup])
    expected = []
    for _ in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    found = rates(steps, schedule=schedule, warmup=warmup)
    assert found == pytest.approx(expected, rel=1e-12)
    assert min(found) > 0


def test_the_default_is_the_configured_rate_to_the_last_bit() -> None:
    assert set(rates(50)) == {0.3}


def test_update_takes_the_rate_of_its_step(run_config: RunConfigMaker, tmp_path: Path) -> None:
    """The first of two warm-up steps has a third of the rate."""
    for name, settings in (
        ("warm", ["optimizer.lr=0.03", "optimizer.warmup=2"]),
        ("third", [f"optimizer.lr={0.03 / 3}"]),
        ("full", ["optimizer.lr=0.03"]),
    ):
        config = run_config(f"run.dir={tmp_path / name}", "trainer.steps=1", *settings)
        assert train(config, resume="auto") == 0
    warm, third, full = (weights(tmp_path / name, "lora") for name in ("warm", "third", "full"))
    assert all(torch.equal(warm[key], third[key]) for key in warm)
    assert not all(torch.equal(warm[key], full[key]) for key in warm)


def test_resumed_run_has_the_rates_of_the_uninterrupted_one(
    run_config: RunConfigMaker, tmp_path: Path
) -> None:
    """So it has the KL coefficients, and a guided reference and a gate of the KL term."""
    guided = ("algorithm.kl_reference=guided", "algorithm.kl_guidance=3", "algorithm.kl_schedule=linear")
    gated = ("algorithm.kl_gate=watched", "+eval_rewards.other={plugin: compressibility, quality: 50}")
    schedule = (*SETTINGS, *guided, *gated, "optimizer.schedule=cosine", "optimizer.warmup=1")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(run_config("trainer.steps=4", f"run.dir={whole}", *schedule), resume="auto") == 0
    copied(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-00000004")
    config = run_config("trainer.steps=4", f"run.dir={cut}", *schedule)
    assert train(config, resume="auto") == 0
    assert_same_run(cut, whole)
    more = run_config("trainer.steps=5", f"run.dir={cut}", *schedule)
    assert train(more, resume="auto") == 0
    recorded = [row for row in read_rows(cut / "metrics.jsonl") if row["phase"] == "train"]
    planned = [
        learning_rate(config.optimizer, step, steps)
        for step, steps in ((1, 4), (2, 4), (3, 4), (4, 4), (5, 5))
    ]
    assert [row["optimizer/learning_rate"] for row in recorded] == planned
    assert [row["loss/kl_coef"] for row in recorded] == pytest.approx([1e-4, 7.5e-5, 5e-5, 2.5e-5, 2e-5])
