"""Warnings of training without signal: at the right step, and once."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from marble_cli.policy.pipeline import PipelinePolicy
from marble_cli.run.signal_watch import DEAD, EQUAL_IN_HALF_PRECISION, SignalWatch
from marble_cli.run.train import train

Row = dict[str, float]


def step(deviation: float, eta: float | None = 0.5, norm: float = 1.0, dead: float = 0.0) -> Row:
    row = {"policy/deviation": deviation, "signal/dead_groups": dead}
    return row if eta is None else {**row, "behaviour/eta": eta, "grad_norm": norm}


def warned(rows: list[Row], dtype: torch.dtype = torch.float32) -> list[tuple[int, str]]:
    """The step and the first metric that each warning names."""
    watch = SignalWatch.over(dtype)
    return [
        (number, "deviation" if text.startswith("policy/deviation") else "dead")
        for number, row in enumerate(rows, 1)
        for text in watch.see(row)
    ]


@pytest.mark.parametrize(
    ("rows", "steps"),
    [
        ([step(0.0), step(0.1), step(0.2)], []),
        ([step(0.0), step(0.0), step(0.0)], [2]),
        ([step(0.0, eta=0.0), step(0.0, eta=0.0), step(0.0, eta=0.1), step(0.0)], [4]),
        ([step(0.0, eta=1.0), step(0.0, eta=1.0)], [2]),
        ([step(0.0, eta=None), step(0.0, eta=None), step(0.0), step(0.1)], []),
        ([step(0.0, norm=0.0), step(0.0), step(0.1)], []),
        ([{"signal/dead_groups": 0.0, "behaviour/eta": 0.5, "grad_norm": 1.0}] * 3, []),
    ],
    ids=["moves", "never", "copied_until_3", "held", "skipped", "nothing_to_follow", "unknown"],
)
def test_a_deviation_of_zero_is_told_where_it_must_not_be(rows: list[Row], steps: list[int]) -> None:
    assert warned(rows) == [(number, "deviation") for number in steps]


def test_rounding_has_time_to_show_a_difference() -> None:
    rows = [step(0.0)] * (EQUAL_IN_HALF_PRECISION + 1)
    assert warned(rows, torch.bfloat16) == [(EQUAL_IN_HALF_PRECISION + 1, "deviation")]
    rows[EQUAL_IN_HALF_PRECISION // 2] = step(1e-6)
    assert warned(rows, torch.bfloat16) == []


def test_dead_groups_are_told_if_most_are_for_some_steps() -> None:
    few, most = step(0.1, dead=0.5), step(0.1, dead=0.6)
    assert warned([most] * (DEAD - 1) + [few] + [most] * DEAD + [few] + [most] * DEAD) == [(2 * DEAD, "dead")]
    for more, advised in (({}, True), ({"signal/redrawn_groups": 2}, False)):
        watch = SignalWatch.over(torch.float32)
        (text,) = (text for _ in range(DEAD) for text in watch.see(most | more))
        assert ("rollout.dead_groups=redraw" in text) is advised


def test_a_run_whose_policies_are_the_same_says_so(
    run_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The behaviour policy answers with the trained weights, as after a switch that has no effect."""
    original = PipelinePolicy.velocity

    def velocity(self: Any, xt: Any, t: Any, embeddings: Any, adapter: Any) -> Any:
        return original(self, xt, t, embeddings, "trained" if adapter == "behaviour" else adapter)

    monkeypatch.setattr(PipelinePolicy, "velocity", velocity)
    with caplog.at_level(logging.WARNING, "marble"):
        assert train(run_config(f"run.dir={tmp_path}", "trainer.steps=3"), resume="never") == 0
    told = [record.getMessage() for record in caplog.records if "policy/deviation" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("step 2: policy/deviation is exactly 0")
