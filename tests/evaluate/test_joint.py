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
