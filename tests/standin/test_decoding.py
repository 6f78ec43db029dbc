"""Decoding pictures and videos takes what the plan says, at published models' true sizes."""

from typing import Any

import pytest

from tests.standin.device import counts
from tests.standin.programs.decoding import CASES


@pytest.fixture(scope="module")
def found() -> Any:
    """The counts of tests/standin/programs/decoding.py."""
    return counts("tests.standin.programs.decoding")


@pytest.mark.parametrize("case", CASES)
def test_peak_memory_is_as_planned(found: Any, case: str) -> None:
    assert found[case]["plan"] == pytest.approx(found[case]["peak"], rel=0.02)
