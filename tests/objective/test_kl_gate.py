"""The gate of the KL term against counting by hand."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from marble_cli.objective.image_weights import drop
from marble_cli.objective.kl_gate import open_gate, win_rates
from marble_cli.rewards.scorer import Scores
from marble_cli.run.gate import Gate

NAN = torch.nan


def test_win_rates_compare_the_scored_images_of_a_group() -> None:
    """A group of four, one of them without a score, a tie, and an image alone."""
    values = torch.tensor([[3.0, 1.0, NAN, 2.0, 5.0, 5.0, 9.0]]).double()
    groups = torch.tensor([7, 7, 7, 7, 2, 2, 4])
    found = win_rates(values, ~values.isnan(), groups)
    assert found.tolist() == [[1.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5]]


def test_gate_is_open_where_trained_rewards_outrank_watched_ones() -> None:
    """Two trained and two watched rewards; the second watched one scores two images."""
    trained = torch.tensor([[4.0, 3.0, 2.0, 1.0], [40.0, 10.0, 30.0, 20.0]]).double()
    # Mean win rates:         1,   1/3,   1/2,  1/6
    watched = torch.tensor([[1.0, 2.0, 2.0, 0.0], [NAN, 0.5, 0.1, NAN]]).double()
    # Mean win rates:         1/3, 11/12, 5/12, 0
    groups = torch.zeros(4, dtype=torch.int64)
    found = open_gate(trained, ~trained.isnan(), watched, ~watched.isnan(), groups)
    assert found.tolist() == [1.0, 0.0, 1.0, 1.0]


def test_images_that_cannot_be_compared_keep_their_pull() -> None:
    """The first lacks a watched score, the second a trained one; the others are ranked alike."""
    trained = torch.tensor([[1.0, NAN, 3.0, 4.0]]).double()
    watched = torch.tensor([[NAN, 8.0, 0.1, 0.2]]).double()
    groups = torch.tensor([0, 0, 1, 1])
    found = open_gate(trained, ~trained.isnan(), watched, ~watched.isnan(), groups)
    assert found.tolist() == [1.0, 1.0, 0.0, 0.0]


@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 3))
def test_gate_depends_on_ranks_alone(seed: int, trained: int, watched: int) -> None:
    """Rewards that agree close it; monotone scores and the order of images and rewards change nothing."""
    draw = torch.Generator().manual_seed(seed)
    groups = torch.arange(3).repeat_interleave(4)
    ours, theirs = (
        torch.randint(5, (count, 12), generator=draw).double() - 2 for count in (trained, watched)
    )
    here, there = (torch.rand(rows.shape, generator=draw) < 0.8 for rows in (ours, theirs))
    found = open_gate(ours, here, theirs, there, groups)
    assert torch.equal(open_gate(ours**3 + 7, here, theirs.exp(), there, groups), found)
    order, rows = torch.randperm(12, generator=draw), torch.randperm(watched, generator=draw)
    moved = open_gate(
        ours[:, order], here[:, order], theirs[rows][:, order], there[rows][:, order], groups[order]
    )
    assert torch.equal(moved, found[order])
    assert torch.equal(open_gate(ours, here, ours, here, groups), (~here.any(0)).double())


def test_gate_multiplies_the_weights_of_images_in_training() -> None:
    """Of three groups the last is dropped; the gate is open for the two images that `other` ranks low."""
    values = torch.tensor([[1.0, 2, 1, 2, 1, 1], [2.0, 1, 1, 2, 5, 1], [NAN] * 6]).double()
    scores = Scores(["one", "other", "guard"], values, ~values.isnan(), torch.zeros(3, 6, dtype=torch.bool))
    groups = torch.tensor([0, 0, 1, 1, 2, 2])
    gate = Gate(["one"], ["other"])
    weights, metrics = gate.weigh(None, scores, groups)
    assert weights.kl.tolist() == [0, 1, 0, 0, 0, 1]
    assert metrics == {"loss/kl_share": 2 / 6}
    dropped = drop(groups == 2, torch.ones(6, dtype=torch.bool))
    weights, metrics = gate.weigh(dropped, scores, groups)
    assert weights.kl.tolist() == [0, 1.5, 0, 0, 0, 0]
    assert weights.shared.tolist() == [1.5] * 4 + [0, 0]
    assert metrics == {"loss/kl_share": 1 / 4}
