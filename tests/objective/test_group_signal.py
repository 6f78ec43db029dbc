"""Groups without signal against counting by hand, and against the advantages that they lead to."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from marble_cli.objective.advantages import advantages
from marble_cli.objective.group_signal import dead_images, group_signal

NAN = torch.nan


def test_signal_takes_two_scores_that_differ() -> None:
    """Four groups of two: they differ, are equal, one is missing, both are missing."""
    values = torch.tensor([[1.0, 2, 0.1, 0.1, 5, NAN, NAN, NAN], [3.0, 3, 1, 1, 7, 8, NAN, NAN]]).double()
    groups = torch.tensor([4, 4, 1, 1, 2, 2, 9, 9])
    signal = group_signal(values, ~values.isnan(), groups)  # groups in the order of their numbers
    assert signal.applies.tolist() == [[True, True, True, False]] * 2
    assert signal.differs.tolist() == [[False, False, True, False], [False, True, False, False]]
    assert [signal.flat_share(k) for k in (0, 1)] == [2 / 3, 2 / 3]
    assert signal.dead.tolist() == [True, False, False, True]
    assert dead_images(signal, groups).tolist() == [False, False, True, True, False, False, True, True]
    alone = group_signal(values[:1], ~values[:1].isnan(), groups)
    assert alone.dead.tolist() == [True, True, False, True], "of the rows that are given"
    nowhere = torch.zeros(2, 8, dtype=torch.bool)
    assert group_signal(values, nowhere, groups).flat_share(0) is None


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 5))
def test_an_image_of_a_dead_group_has_no_advantage_of_any_reward(seed: int, count: int, size: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    values = torch.randint(2, (count, 4 * size), generator=draw) * 0.1
    applicable = torch.rand(count, 4 * size, generator=draw) < 0.7
    groups = torch.arange(4).repeat_interleave(size)
    signal = group_signal(values, applicable, groups)
    moved = advantages(values, applicable, groups).ne(0).view(count, 4, size).any(2)
    assert torch.equal(moved, signal.differs)
    assert torch.equal(dead_images(signal, groups).view(4, size).any(1), ~moved.any(0))
