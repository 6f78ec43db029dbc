"""Joint improvement and decline against a count by hand and by properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from marble_cli.evaluate.joint import joint_change

NAN = float("nan")


def test_joint_shares_equal_a_count_by_hand() -> None:
    before = np.array([[0.0, 0.0, 0.0, 0.0, 0.0, NAN], [1.0, 1.0, 1.0, NAN, 1.0, NAN]])
    now = np.array([[1.0, 1.0, -1.0, 2.0, 0.0, NAN], [1.0, 0.5, 0.0, NAN, 1.0, NAN]])
    # better and equal; better and worse; worse in both; better in its only one; equal; not applicable
    change = joint_change(now, before, ~np.isnan(now))
    assert change is not None
    assert (change.images, change.improvement, change.decline) == (5, 2 / 5, 1 / 5)
    low, high = change.improvement_interval
    assert 0 <= low <= 0.4 <= high <= 1


def test_a_difference_of_rounding_counts_as_none() -> None:
    before = np.array([[0.6, 0.6, -600.0, 0.0, 0.6], [1.0, 1.0, 1.0, 1.0, 1.0]])
    now = before + np.array([[2e-5, 2e-4, -2e-2, 2e-6, 2e-5], [0.0, 0.0, -2e-5, 0.0, 0.1]])
    change = joint_change(now, before, np.ones_like(now, dtype=bool))
    assert change is not None
    assert (change.improvement, change.decline) == (3 / 5, 0), "the second, fourth and last image"


def test_all_images_of_a_prompt_are_resampled_together() -> None:
    """Four equal images per prompt are no more evidence than one; as images of their own they would be."""
    now = np.sign(np.random.default_rng(0).normal(0.2, 1, size=(2, 25)))
    before, prompts = np.zeros_like(now), np.repeat(np.arange(25), 4)
    applies = np.ones_like(now, dtype=bool)
    one = joint_change(now, before, applies)
    many = [np.repeat(part, 4, axis=1) for part in (now, before, applies)]
    four, apart = joint_change(*many, prompts), joint_change(*many)
    assert one is not None
    assert four is not None
    assert apart is not None
    assert four.improvement_interval == pytest.approx(one.improvement_interval, rel=1e-12)
    assert four.decline_interval == pytest.approx(one.decline_interval, rel=1e-12)
    assert np.diff(apart.improvement_interval)[0] < 0.7 * np.diff(one.improvement_interval)[0]


def test_without_scored_images_there_is_no_joint_change() -> None:
    assert joint_change(np.zeros((2, 3)), np.ones((2, 3)), np.zeros((2, 3), dtype=bool)) is None


@given(
    arrays.arrays(float, (3, 6), elements=st.integers(-2, 2).map(float)),
    arrays.arrays(float, (3, 6), elements=st.integers(-2, 2).map(float)),
    arrays.arrays(bool, (3, 6)),
)
def test_decline_is_at_most_the_improvement_with_policies_exchanged(
    now: np.ndarray, before: np.ndarray, applicable: np.ndarray
) -> None:
    """An image that declines improves in the reverse comparison. Order and masked values have no effect."""
    ahead = joint_change(now, before, applicable, resamples=1000)
    back = joint_change(before, np.where(applicable, now, NAN), applicable, resamples=1000)
    if not applicable.any():
        assert ahead is back is None
        return
    assert ahead is not None
    assert back is not None
    assert ahead.decline <= back.improvement
    assert ahead.improvement + ahead.decline <= 1
    shuffled = np.random.default_rng(0).permutation(6)
    moved = joint_change(now[:, shuffled], before[:, shuffled], applicable[:, shuffled], resamples=1000)
    assert moved is not None
    assert (moved.improvement, moved.decline) == pytest.approx((ahead.improvement, ahead.decline))


def test_intervals_narrow_with_more_images() -> None:
    draw = np.random.default_rng(0)
    widths = []
    for count in (30, 3000):
        change = joint_change(
            draw.normal(size=(2, count)), np.zeros((2, count)), np.ones((2, count), dtype=bool)
        )
        assert change is not None
        low, high = change.improvement_interval
        widths.append(high - low)
        assert low <= change.improvement <= high
    assert widths[1] < widths[0] / 5
