"""Moving averages: their decay, and the behaviour policy's schedule."""

import pytest
import torch

from marble_cli.config.algorithm import BehaviourConfig
from marble_cli.config.enums import BehaviourSchedule
from marble_cli.config.trainer import EmaConfig
from marble_cli.policy.trainable.ema import behaviour_eta, blend, ema_decay


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (BehaviourSchedule.ramp, {1: 0.001, 100: 0.1, 950: 0.95, 5000: 0.95}),
        (BehaviourSchedule.flat, {1: 0.95, 5000: 0.95}),
        (BehaviourSchedule.hold, {1: 1.0, 5000: 1.0}),
    ],
)
def test_behaviour_eta_follows_the_schedule(schedule: BehaviourSchedule, expected: dict[int, float]) -> None:
    settings = BehaviourConfig(schedule, rate=0.001, maximum=0.95)
    assert {step: behaviour_eta(settings, step) for step in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "flat", "rate", "maximum"),
    [
        (BehaviourConfig(BehaviourSchedule.ramp, rate=0.0, maximum=0.0), 0, 0.0, 0.0),
        (BehaviourConfig(BehaviourSchedule.ramp, rate=0.001, maximum=0.95), 0, 0.001, 0.95),
        (BehaviourConfig(BehaviourSchedule.ramp, rate=0.0075, maximum=0.999, delay=75), 75, 0.0075, 0.999),
    ],
    ids=["0", "1", "2"],
)
def test_published_decay_types_are_ramps(
    settings: BehaviourConfig, flat: int, rate: float, maximum: float
) -> None:
    """Step by step: nothing is kept for `flat` steps, then `rate` a step more, `maximum` at most."""
    for step in range(1, 2001):
        expected = 0.0 if step < flat else min((step - flat) * rate, maximum)
        assert behaviour_eta(settings, step) == expected
    if flat:
        assert [behaviour_eta(settings, step) for step in (75, 76, 208, 209)] == pytest.approx(
            [0.0, 0.0075, 0.9975, 0.999]
        )


def test_warm_up_9_and_offset_1_give_the_published_decay() -> None:
    for step in range(1, 200):
        assert ema_decay(EmaConfig(0.9, warmup=9, offset=1), step) == min((1 + step) / (10 + step), 0.9)
    assert ema_decay(EmaConfig(0.9, warmup=9), 1) == 0.1  # without the offset it is a step behind
    assert [ema_decay(EmaConfig(0.9, warmup=0, offset=5), step) for step in (1, 100)] == [0.9, 0.9]


def test_warm_up_ramps_the_decay() -> None:
    assert [ema_decay(EmaConfig(0.9, 0), step) for step in (1, 100)] == [0.9, 0.9]
    assert [ema_decay(EmaConfig(0.9, 10), step) for step in (1, 10, 1000)] == [1 / 11, 0.5, 0.9]


def test_blend_keeps_a_share_in_place() -> None:
    kept = torch.tensor([1.0, 2.0])
    target = {"a": kept}
    blend(target, {"a": torch.tensor([5.0, 6.0]), "b": torch.zeros(1)}, 0.75)
    assert target["a"] is kept
    assert kept.tolist() == [2.0, 3.0]
    blend(target, {"a": torch.full((2,), torch.pi)}, 1.0)
    assert kept.tolist() == [2.0, 3.0]
    blend(target, {"a": torch.full((2,), torch.pi)}, 0.0)
    torch.testing.assert_close(kept, torch.full((2,), torch.pi))
