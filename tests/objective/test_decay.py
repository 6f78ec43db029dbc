"""Coefficients that decay over a run; tests/run/test_learning_rate.py holds them to torch's schedulers."""

from collections.abc import Callable

import pytest

from marble_cli.config.enums import DecaySchedule
from marble_cli.config.schema import RunConfig
from marble_cli.objective.decay import decay, kl_coefficient
from marble_cli.run.rollback import in_force
from marble_cli.run.state import Progress


@pytest.mark.parametrize(
    ("schedule", "middle", "end"),
    [(DecaySchedule.constant, 1, 1), (DecaySchedule.cosine, 0.75, 0), (DecaySchedule.linear, 2 / 3, 0)],
)
def test_decay_begins_at_1_and_ends_at_0(schedule: DecaySchedule, middle: float, end: float) -> None:
    assert decay(schedule, 0.0) == 1
    assert decay(schedule, 1 / 3) == pytest.approx(middle, rel=1e-12)
    assert decay(schedule, 1.0) == pytest.approx(end, abs=1e-12)


def test_kl_coefficient_decays_from_what_rollbacks_made_of_it(run_config: Callable[..., RunConfig]) -> None:
    config = run_config("algorithm.kl_coef=0.2", "algorithm.kl_schedule=linear")
    progress = Progress(3, None, {}, {})  # type: ignore[arg-type]

    def coefficients() -> list[float]:
        algorithm = in_force(config, progress).algorithm
        return [kl_coefficient(algorithm, step, 4) for step in (1, 2, 3, 4)]

    assert coefficients() == pytest.approx([0.2, 0.15, 0.1, 0.05])
    progress.kl_coef = 0.8
    assert coefficients() == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_by_default_the_coefficient_is_constant_to_the_last_bit(run_config: Callable[..., RunConfig]) -> None:
    algorithm = run_config("algorithm.kl_coef=0.3").algorithm
    assert {kl_coefficient(algorithm, step, 50) for step in range(1, 51)} == {0.3}
