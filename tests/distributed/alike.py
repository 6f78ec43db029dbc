"""A run of smooth rewards, and how runs of several processes are compared with those of one."""

from typing import Any

import pytest

STEPS = 3
# Smooth rewards: one that counts bytes would turn a pixel's rounding into another advantage.
SETTINGS = (
    "rewards=[colorfulness]",
    "+rewards.some={plugin: colorfulness, sources: [text, general]}",
    f"trainer.steps={STEPS}",
    "balance.refresh_every=2",
    "balance.shared_term=outside",
    "trainer.eval_every=3",
    "algorithm.behaviour.rate=0.3",
    "algorithm.kl_coef=0.5",
    "rollout.groups=5",
    "rollout.batch_size=3",
    "trainer.micro_batch_size=3",
)
CLOCKS = ("time/", "throughput/", "balance/solve_seconds", "balance/gap")


def assert_alike(
    rows: list[dict[str, Any]], others: list[dict[str, Any]], near_loss: float = 2e-6, near_rest: float = 1e-4
) -> None:
    assert [(row["step"], row["phase"]) for row in rows] == [(row["step"], row["phase"]) for row in others]
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for key in row.keys() - {"step", "phase"}:
            if not key.startswith(CLOCKS):
                # A rounded pixel is seen most in the fourth powers of effective samples.
                near = near_loss if key.startswith("loss/") else 1e-3 if "effective" in key else near_rest
                assert row[key] == pytest.approx(other[key], rel=near, abs=near), (row["step"], key)
