"""A run that was cut equals an uncut one bit by bit, if torch takes deterministic algorithms."""

from pathlib import Path

import pytest

from marble_cli.config.compose import compose
from marble_cli.run.train import train
from tests.gpu.tiny_run import FOUR_STEPS, cut_and_resumed
from tests.run.conftest import finished
from tests.run.runs import assert_same_run
from tests.run.test_resume import (
    test_finished_run_has_moved_in_every_part,
    test_resume_after_two_steps_equals_the_uninterrupted_run,
    test_resume_of_full_weights_is_exact,
)

__all__ = [
    "finished",
    "test_finished_run_has_moved_in_every_part",
    "test_resume_after_two_steps_equals_the_uninterrupted_run",
    "test_resume_of_full_weights_is_exact",
]


pytestmark = pytest.mark.usefixtures("deterministic")


def test_the_embedded_model_cut_and_resumed_equals_the_uncut_run(
    tiny_overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every reward of the preset that is installed, in streams of their own."""
    whole, cut = (
        compose([*tiny_overrides, *FOUR_STEPS, f"run.dir={tmp_path / name}"]) for name in ("whole", "cut")
    )
    assert train(whole, resume="auto") == 0
    cut_and_resumed(cut, monkeypatch)
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
