"""The metrics of a step's rewards."""

from typing import Any

import pytest
import torch

from marble_cli.config.schema import RunConfig
from marble_cli.step.reward_signal import describe_signal, read_signal


def test_metrics_count_only_what_applies(run_config: Any) -> None:
    config: RunConfig = run_config()
    rewards = torch.tensor([[1.0, 3.0, 5.0, 100.0], [2.0, 2.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]]).double()
    applicable = torch.tensor([[True, True, True, False], [True, True, False, False], [False] * 4])
    signal = read_signal(rewards, applicable, torch.tensor([0, 0, 1, 1]), config.algorithm)
    assert describe_signal(["a", "b", "nowhere"], signal) == {
        "signal/dead_groups": 0.5,
        "reward/a/applicable": 3,
        "reward/a/mean": 3.0,
        "reward/a/std": pytest.approx((8 / 3) ** 0.5),
        "advantage/a/std": pytest.approx((2 / 3) ** 0.5 / ((8 / 3) ** 0.5 + 1e-4)),
        "advantage/a/effective_samples": pytest.approx(2.0),
        "reward/a/flat_groups": 0.5,
        "reward/b/applicable": 2,
        "reward/b/mean": 2.0,
        "reward/b/std": 0.0,
        "advantage/b/std": 0.0,
        "advantage/b/effective_samples": 0.0,
        "reward/b/flat_groups": 1.0,
        "reward/nowhere/applicable": 0,
    }
    r = signal.optimality[0]
    assert r[1] > 0.5 > r[0]
    assert r[2] == 0.5
