"""How fast an H100 would take the paper's step, by what its kernels compute and move, does not fall.

A roofline (scripts/bench/roofline.py) times nothing, so each bound is what was found, rounded down.
"""

from typing import Any

import pytest

from tests.standin.device import counts

TIMES_THE_RECIPE = {
    "ours": 1.26,
    "ours + fraction 0.25": 1.29,
    "ours, compiled": 1.87,
    "ours, compiled + fraction 0.25": 1.91,
    "ours, compiled + kl_every 4": 2.18,
}


@pytest.fixture(scope="module")
def steps() -> Any:
    """Seconds of a step on one H100, by whose it is."""
    return counts("tests.standin.programs.roofline")["steps"]


@pytest.mark.parametrize("whose", TIMES_THE_RECIPE)
def test_a_step_is_faster_than_the_recipe_s(steps: Any, whose: str) -> None:
    assert steps["recipe"] / steps[whose] >= TIMES_THE_RECIPE[whose]
