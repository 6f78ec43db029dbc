"""Advantages against their definition, written out image by image, and the properties that follow from it."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from marble_cli.config.compose import compose
from marble_cli.config.enums import AdvantageStd, Reduce
from marble_cli.errors import ConfigError
from marble_cli.objective.advantages import advantage_sum, advantages, optimality, weighted_sum

STEP = st.builds(
    lambda seed, rewards, sizes, share: draw(seed, rewards, sizes, share),
    seed=st.integers(0, 2**31),
    rewards=st.integers(1, 5),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    share=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
)


def draw(seed: int, rewards: int, sizes: list[int], share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Draw scores [K, n], NaN where not applicable, a mask with about `share` true, and shuffled groups."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.repeat_interleave(torch.arange(len(sizes)) * 13 + 5, torch.tensor(sizes))
    groups = groups[torch.randperm(len(groups), generator=generator)]
    applicable = torch.rand(rewards, len(groups), generator=generator) < share
    scores = torch.randn(rewards, len(groups), generator=generator, dtype=torch.float64)
    return torch.where(applicable, scores, torch.nan), applicable, groups


def naive(scores: Tensor, applicable: Tensor, groups: Tensor, std: AdvantageStd, epsilon: float) -> Tensor:
    """The definition, with lists and loops."""
    result = torch.zeros(scores.shape, dtype=torch.float64)
    for k, row in enumerate(scores.tolist()):
        valid = [i for i in range(len(row)) if applicable[k, i]]
        for i in valid:
            group = [row[j] for j in valid if groups[j] == groups[i]]
            if len(set(group)) == 1:
                continue
            population = [row[j] for j in valid] if std is AdvantageStd["global"] else group
            mean = math.fsum(population) / len(population)
            deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in population) / len(population))
            result[k, i] = (row[i] - math.fsum(group) / len(group)) / (deviation + epsilon)
    return result


@pytest.mark.parametrize("std", AdvantageStd)
@given(step=STEP)
@settings(max_examples=60, deadline=None)
def test_advantages_are_their_definition(step: tuple[Tensor, Tensor, Tensor], std: AdvantageStd) -> None:
    got = advantages(*step, std=std)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, naive(*step, std, 1e-4), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("std", AdvantageStd)
@given(step=STEP)
@settings(max_examples=40, deadline=None)
def test_every_group_has_mean_zero_and_the_rest_is_zero(
    step: tuple[Tensor, Tensor, Tensor], std: AdvantageStd
) -> None:
    _, applicable, groups = step
    got = advantages(*step, std=std)
    assert (got[~applicable] == 0.0).all()
    for group in groups.unique():
        assert got[:, groups == group].sum(1).abs().max() < 1e-10


@given(step=STEP, shift=st.floats(-1e3, 1e3))
@settings(max_examples=40, deadline=None)
def test_easier_prompts_do_not_matter(step: tuple[Tensor, Tensor, Tensor], shift: float) -> None:
    scores, applicable, groups = step
    easier = scores + shift * torch.sin(groups.double())
    torch.testing.assert_close(
        advantages(easier, applicable, groups, std=AdvantageStd.group),
        advantages(scores, applicable, groups, std=AdvantageStd.group),
        rtol=1e-7,
        atol=1e-7,
    )
    torch.testing.assert_close(
        advantages(scores + shift, applicable, groups),
        advantages(scores, applicable, groups),
        rtol=1e-7,
        atol=1e-7,
    )


@pytest.mark.parametrize("std", AdvantageStd)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e-30, 123456.789])
def test_equal_scores_are_no_signal(std: AdvantageStd, value: float) -> None:
    groups = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    scores = torch.tensor([[value] * 3 + [0.3, 0.1, 0.2, 0.9]], dtype=torch.float64)
    got = advantages(scores, torch.ones(1, 7, dtype=torch.bool), groups, std=std)
    assert (got[0, :3] == 0.0).all()
    assert got[0, 3:].abs().min() > 0.0


def test_a_reward_that_applies_nowhere_and_an_empty_step() -> None:
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    scores = torch.full((2, 3), torch.nan, dtype=torch.float64)
    assert (advantages(scores, nothing, torch.zeros(3, dtype=torch.int64)) == 0.0).all()
    assert advantages(scores[:, :0], nothing[:, :0], torch.zeros(0, dtype=torch.int64)).shape == (2, 0)


def test_an_unknown_deviation_is_refused_with_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"advantage\.std=batch: .*global, group"):
        compose(["preset=tiny", "algorithm.advantage.std=batch"])


def test_optimality_saturates_at_the_clip() -> None:
    advantage = torch.tensor([-9.0, -5.0, -2.5, 0.0, 2.5, 5.0, 9.0], dtype=torch.float64)
    expected = torch.tensor([0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(optimality(advantage, 5.0), expected)


def test_the_weighted_sum_takes_what_applies() -> None:
    scores = torch.tensor([[1.0, 2.0, torch.nan, torch.nan], [10.0, torch.nan, 30.0, torch.nan]])
    total, scored = weighted_sum(scores, ~scores.isnan(), torch.tensor([2.0, 0.5]))
    assert total.tolist() == [[7.0, 4.0, 15.0, 0.0]]
    assert scored.tolist() == [[True, True, True, False]]
    assert total.dtype == torch.float64


def test_the_mean_is_over_the_weights_of_what_applies() -> None:
    scores = torch.tensor([[1.0, 2.0, torch.nan, torch.nan], [10.0, torch.nan, 30.0, torch.nan]])
    mean, scored = weighted_sum(scores, ~scores.isnan(), torch.tensor([2.0, 0.5]), reduce=Reduce.mean)
    assert mean.tolist() == [[2.8, 2.0, 30.0, 0.0]]
    assert scored.tolist() == [[True, True, True, False]]
    _, scored = weighted_sum(scores, ~scores.isnan(), torch.tensor([2.0, 0.0]), reduce=Reduce.mean)
    assert scored.tolist() == [[True, True, False, False]]  # the third has no weight to divide by


@pytest.mark.parametrize("reduce", Reduce)
def test_a_reward_of_weight_zero_is_out_of_the_sum(reduce: Reduce) -> None:
    """The second reward lacks an image of the first prompt, and scores all of the third prompt, alone."""
    scores = torch.randn(2, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    groups, applicable = torch.arange(12) // 4, torch.ones(2, 12, dtype=torch.bool)
    applicable[1, 0], applicable[0, 8:] = False, False
    weights = torch.tensor([2.0, 0.0])
    for one, both in (
        (
            weighted_sum(scores[:1], applicable[:1], weights[:1], groups, reduce=reduce),
            weighted_sum(scores, applicable, weights, groups, reduce=reduce),
        ),
        (
            advantage_sum(scores[:1], applicable[:1], weights[:1]),
            advantage_sum(scores, applicable, weights),
        ),
    ):
        assert all(mine.equal(other) for mine, other in zip(one, both, strict=True))
        assert both[1].tolist() == [[True] * 8 + [False] * 4]


SOURCES = {"general": 3, "text": 4, "compositional": 4}  # rewards that apply to its images


@pytest.mark.parametrize("weights", [[1.0] * 5, [0.0385, 1.0, 2.5, 0.3, 7.0], [1.0, 1.0, 1.0, 0.0, 0.0]])
@pytest.mark.parametrize("reduce", Reduce)
def test_a_mixture_of_three_sources_is_what_it_says(weights: list[float], reduce: Reduce) -> None:
    """Three prompts per source, four images each.

    General rewards apply everywhere, the fourth to text, the fifth to the last source.
    """
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(5, 36, generator=generator, dtype=torch.float64) * torch.tensor(
        [[20.0], [0.3], [0.3], [1], [1]]
    )
    source, groups = torch.arange(36) // 12, torch.arange(36) // 4
    applicable = torch.ones(5, 36, dtype=torch.bool)
    applicable[3], applicable[4] = source == 1, source == 2
    assert [int(applicable[:, 12 * i].sum()) for i in range(3)] == list(SOURCES.values())
    mixed, scored = weighted_sum(
        scores, applicable, torch.tensor(weights, dtype=torch.float64), groups, reduce=reduce
    )
    rewards = []
    for i in range(36):
        named = [k for k in range(5) if applicable[k, i]]
        value = sum(weights[k] * scores[k, i].item() for k in named)
        rewards.append(value if reduce is Reduce.sum else value / sum(weights[k] for k in named))
    assert scored.all()
    torch.testing.assert_close(mixed[0], torch.tensor(rewards, dtype=torch.float64), rtol=1e-14, atol=1e-14)
    means = [sum(rewards[4 * g : 4 * g + 4]) / 4 for g in range(9)]
    everywhere = sum(rewards) / 36
    deviation = math.sqrt(sum((x - everywhere) ** 2 for x in rewards) / 36)
    expected = [(x - means[i // 4]) / (deviation + 1e-4) for i, x in enumerate(rewards)]
    got = advantages(mixed, scored, groups)[0]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reduce", ["median", "", "Mean", "average"])
def test_an_unknown_reduction_is_refused_with_the_configuration(reduce: str) -> None:
    with pytest.raises(ConfigError, match=rf"balance\.reduce={reduce}: .*mean, sum"):
        compose(["preset=tiny", f"balance.reduce={reduce}"])


@pytest.mark.parametrize("reduce", Reduce)
def test_a_failed_score_leaves_its_image_out_of_either(reduce: Reduce) -> None:
    """The mean over the scores that are left would have another scale than that of its siblings."""
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0], [10.0, torch.nan, torch.nan, torch.nan]])
    groups = torch.tensor([0, 0, 1, 1])
    _, scored = weighted_sum(scores, ~scores.isnan(), torch.ones(2), groups, reduce=reduce)
    assert scored.tolist() == [[True, False, True, True]]


def test_summed_advantages_are_normalised_over_the_step() -> None:
    scores, applicable, groups = draw(3, 4, [6, 5, 7], 0.8)
    weights = torch.tensor([1.0, 2.0, 0.5, 0.0])
    each = advantages(scores, applicable, groups, std=AdvantageStd.group)
    total, scored = advantage_sum(each, applicable, weights)
    raw = (each * weights[:, None].double()).sum(0)
    values = [raw[i].item() for i in range(len(raw)) if applicable[:3, i].any()]
    deviation = math.sqrt(sum(x * x for x in values) / len(values))
    torch.testing.assert_close(total[0], raw / (deviation + 1e-4), rtol=1e-12, atol=1e-12)
    assert abs(sum(values)) < 1e-10
    assert (scored[0] == applicable[:3].any(0)).all()


def test_summed_advantages_do_not_grow_with_the_number_of_rewards() -> None:
    scores, applicable, groups = draw(4, 1, [6, 5, 7], 1.0)
    each = advantages(scores, applicable, groups)
    one, _ = advantage_sum(each, applicable, torch.ones(1))
    nine, _ = advantage_sum(each.expand(9, -1), applicable.expand(9, -1), torch.ones(9))
    torch.testing.assert_close(one, nine, rtol=1e-3, atol=0.0)
