"""Rewards that ask for them are given the pictures that images were edited from; others see nothing new."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from marble_cli.config.schema import AspectConfig, RewardConfig
from marble_cli.errors import RewardError
from marble_cli.rewards.api import Batch
from marble_cli.rewards.conformance import Outcome, run_checks
from marble_cli.rewards.elsewhere.locate import maker
from marble_cli.rewards.registry import build
from marble_cli.rewards.scorer import Scores, open_scorer
from marble_cli.rewards.testing.calls import ContractError
from marble_cli.rewards.testing.examples import prefers_its_examples
from marble_cli.rewards.testing.samples import sample_batch

Install = Callable[..., None]

IMAGES = torch.randint(0, 256, (4, 3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
BEFORE = torch.randint(0, 256, (4, 3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
KEPT = -(IMAGES.double() - BEFORE.double()).abs().mean((1, 2, 3))
# The second image was edited from two pictures, and the last from three; these have other shapes.
SEVERAL = [
    [BEFORE[0]],
    [BEFORE[1], BEFORE[1, :, :4]],
    [BEFORE[2]],
    [BEFORE[3, :, :, :6], BEFORE[3], BEFORE[0]],
]
ONE_EACH = [[picture] for picture in BEFORE]
METADATA: list[dict[str, Any]] = [{}, {"text": "a"}, {}, {"text": "b"}]


@pytest.fixture
def plugins(install: Install) -> None:
    names = ("kept", "maybe", "whole", "spoils", "of_one_size", "areas", "either")
    names += ("whole_by_place", "whole_and_named")
    install(
        brightness="brightness",
        everything="everything",
        signs="condition_plugins:Signs",
        **{name: f"condition_plugins:{name}" for name in names},
    )


def scored(settings: RewardConfig, references: Any) -> Scores:
    with open_scorer({"mine": settings}, "cpu") as scorer:
        return scorer.submit(IMAGES, ["a"] * 4, METADATA, [""] * 4, references=references).result()


def test_a_batch_unpacks_into_three_and_keeps_its_conditions() -> None:
    batch = Batch(IMAGES, ["a"] * 4, [{}] * 4, BEFORE)
    images, prompts, metadata = batch
    assert (images is IMAGES, len(batch), prompts, metadata) == (True, 3, ["a"] * 4, [{}] * 4)
    assert batch._replace(prompts=["b"] * 4).conditions is BEFORE
    assert Batch(IMAGES, ["a"] * 4, [{}] * 4).conditions is None
    chosen = batch.rows([2, 0, 2])
    assert chosen.conditions is not None
    assert torch.equal(chosen.conditions, BEFORE[[2, 0, 2]])
    assert batch.rows([0, 1, 2, 3]) is batch


@pytest.mark.parametrize(
    ("plugin", "takes", "needs"),
    [
        ("kept", True, True),
        ("maybe", True, False),
        ("whole", True, False),
        ("signs", True, True),
        ("brightness", False, False),
        ("everything", False, False),
    ],
)
def test_the_parameters_say_what_a_reward_does_with_conditions(
    plugins: None, plugin: str, takes: bool, needs: bool
) -> None:
    aspects = ("kept",) if plugin == "signs" else ()
    declaration = build("mine", plugin, {}, "cpu", aspects=aspects).declaration
    assert (declaration.takes_conditions, declaration.needs_conditions) == (takes, needs)


@pytest.mark.parametrize("plugin", ["kept", "maybe", "whole", "whole_by_place", "whole_and_named"])
def test_conditions_reach_those_who_ask(plugins: None, plugin: str) -> None:
    scores = scored(RewardConfig(plugin=plugin), ONE_EACH)
    torch.testing.assert_close(scores.values[0], KEPT)


def test_others_are_called_as_before(plugins: None) -> None:
    assert scored(RewardConfig(plugin="everything"), ONE_EACH).values.tolist() == [[3.0] * 4]
    assert torch.equal(
        scored(RewardConfig(plugin="brightness"), ONE_EACH).values,
        scored(RewardConfig(plugin="brightness"), None).values,
    )


def test_without_conditions_a_reward_that_needs_them_does_not_apply(plugins: None) -> None:
    scores = scored(RewardConfig(plugin="kept"), None)
    assert not scores.applicable.any()
    assert not scores.failed.any()
    assert scored(RewardConfig(plugin="maybe"), None).values.tolist() == [[1.0] * 4]


def test_aspects_and_subsets_get_the_conditions_of_their_images(plugins: None) -> None:
    aspects = {"kept": AspectConfig(), "changed": AspectConfig()}
    settings = RewardConfig(plugin="signs", aspects=aspects)
    scores = scored(settings, ONE_EACH)
    assert scores.applicable.tolist() == [[False, True, False, True]] * 2
    torch.testing.assert_close(scores.values[:, [1, 3]], torch.stack([KEPT, -KEPT])[:, [1, 3]])


def test_a_batch_holds_several_pictures_of_some_images() -> None:
    batch = Batch(IMAGES, ["a"] * 4, [{}] * 4, references=SEVERAL)
    assert batch.references == SEVERAL
    assert batch.picture_counts == [1, 2, 1, 3]
    with pytest.raises(RewardError, match="reads `conditions`, one picture per image.*read `references`"):
        _ = batch.conditions
    alone = batch.rows([2, 0])
    assert alone.conditions is not None
    assert torch.equal(alone.conditions, BEFORE[[2, 0]])
    assert batch._replace(prompts=["b"] * 4).references == SEVERAL
    assert batch._replace(conditions=None).references is None
    assert batch._replace(conditions=BEFORE).picture_counts == [1] * 4


@pytest.mark.parametrize(
    ("plugin", "expected"),
    [
        ("kept", [KEPT[0].item(), None, KEPT[2].item(), None]),
        ("maybe", [KEPT[0].item(), None, KEPT[2].item(), None]),
        ("areas", [96.0, 96.0 + 2 * 48, 96.0, 48.0 + 2 * 96 + 3 * 96]),
        ("either", [1.0, 2.0, 1.0, 3.0]),
        ("everything", [3.0] * 4),
    ],
)
def test_a_reward_of_one_picture_does_not_apply_where_there_are_several(
    plugins: None, plugin: str, expected: list[float | None]
) -> None:
    """Whether it needs conditions or not; those who take references get all, in their order."""
    scores = scored(RewardConfig(plugin=plugin), SEVERAL)
    assert scores.applicable[0].tolist() == [value is not None for value in expected]
    assert not scores.failed.any()
    for got, value in zip(scores.values[0].tolist(), expected, strict=True):
        assert value is None or got == pytest.approx(value)


def test_a_reward_of_the_whole_batch_is_told_of_several_pictures(plugins: None) -> None:
    """It reads `batch.conditions`, and might take None for a picture that was drawn from a text."""
    with pytest.raises(RewardError, match="reads `conditions`, one picture per image"):
        scored(RewardConfig(plugin="whole"), SEVERAL)


def test_references_of_single_pictures_are_the_conditions(plugins: None) -> None:
    torch.testing.assert_close(scored(RewardConfig(plugin="either"), ONE_EACH).values[0], KEPT)
    assert scored(RewardConfig(plugin="areas"), ONE_EACH).values.tolist() == [[96.0] * 4]
    assert not scored(RewardConfig(plugin="areas"), None).applicable.any()
    assert failed("areas") == failed("either") == failed("whole") == {}


def failed(plugin: str) -> dict[str, str]:
    reward = maker("mine", RewardConfig(plugin=plugin), "cpu")()
    batch = sample_batch((), conditions=reward.declaration.takes_conditions)
    checks = run_checks(reward, batch)
    return {check.name: check.detail for check in checks if check.outcome is Outcome.FAIL}


@pytest.mark.parametrize("plugin", ["kept", "maybe", "whole"])
def test_checks_give_conditions_to_those_who_ask(plugins: None, plugin: str) -> None:
    assert failed(plugin) == {}


def test_checks_find_faults_with_conditions(plugins: None) -> None:
    assert failed("spoils") == {"leaves its inputs alone": "it changed the conditions"}
    assert set(failed("of_one_size")) == {"takes any picture size"}


def test_examples_may_have_a_condition(plugins: None, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = build("mine", "kept", {}, "cpu")
    batch = sample_batch((), conditions=True)
    one, other = IMAGES[0], BEFORE[0]
    monkeypatch.setattr(
        reward.plugin, "examples", [((one, "", None, one), (other, "", {}, one))], raising=False
    )
    assert "1 pairs in order" in prefers_its_examples(reward, batch)
    for pair, said in (
        ([(one, ""), (other, "", {}, one)], "the reward needs conditions"),
        ([(one, "", {}, one[:, :4]), (other, "", {}, one)], r"a picture is \[3, 8, 12\] and its condition"),
    ):
        monkeypatch.setattr(reward.plugin, "examples", [pair])
        with pytest.raises(ContractError, match=said):
            prefers_its_examples(reward, batch)
