"""Several scores of one call are rewards of their own, and conditions mask rewards by others' scores."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from marble_cli.config.schema import AspectConfig, RewardConfig
from marble_cli.errors import ConfigError, RewardError
from marble_cli.plan.checks import check_plugins
from marble_cli.rewards.api import Declaration
from marble_cli.rewards.conformance import Outcome, run_checks
from marble_cli.rewards.elsewhere.locate import declare
from marble_cli.rewards.registry import build
from marble_cli.rewards.scorer import open_scorer
from marble_cli.rewards.testing.samples import sample_batch
from tests.rewards.sample_plugins import TwoAspects
from tests.rewards.submission import submit

Install = Callable[..., None]
BOTH = {"light": AspectConfig(), "number": AspectConfig()}
NAN = torch.nan


def same(values: torch.Tensor, expected: list[list[float]]) -> bool:
    return torch.equal(values.nan_to_num(-1), torch.tensor(expected, dtype=torch.float64).nan_to_num(-1))


@pytest.fixture
def calls(install: Install, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Install the reward `two` with aspects; return the batch sizes of its calls."""
    install(two="TwoAspects", answers="Answers", chosen="ChosenAspects", one="brightness")
    import sample_plugins  # type: ignore[import-not-found]  # another module than tests.rewards.sample_plugins

    monkeypatch.setattr(sample_plugins.TwoAspects, "calls", found := [])
    return found


def test_each_aspect_is_a_reward_and_the_plugin_is_asked_once(calls: list[int]) -> None:
    with open_scorer({"two": RewardConfig(plugin="two", aspects=BOTH)}, "cpu") as scorer:
        scores = submit(scorer, ["5", "", "dunno"])
    assert calls == [3]
    assert scores.names == ["two.light", "two.number"]
    assert same(scores.values, [[0, 1, 2], [5, NAN, NAN]])
    assert scores.applicable.tolist() == [[True, True, True], [True, False, False]]
    assert scores.failed.tolist() == [[False] * 3, [False, False, True]]


def test_each_aspect_has_its_own_mask_and_the_others_see_no_more_images(calls: list[int]) -> None:
    aspects = {"light": AspectConfig(sources=["a"]), "number": AspectConfig(requires=["n"])}
    metadata: list[dict[str, Any]] = [{}, {"n": 1}, {}, {"n": 1}]
    with open_scorer(
        {"two": RewardConfig(plugin="two", sources=["a", "b"], aspects=aspects)}, "cpu"
    ) as scorer:
        scores = submit(scorer, ["5", "6", "7", "8"], metadata, ["a", "b", "b", "c"])
    assert calls == [2]
    assert same(scores.values, [[0, NAN, NAN, NAN], [NAN, 6, NAN, NAN]])


def test_a_failed_aspect_leaves_the_others(calls: list[int]) -> None:
    settings = RewardConfig(
        plugin="chosen",
        aspects={"good": AspectConfig(), "bad": AspectConfig()},
        options={"answer": {"good": 1.0, "bad": "no such thing"}},
    )
    with open_scorer({"two": settings}, "cpu") as scorer:
        scores = submit(scorer, ["", ""])
        assert scores.failed.tolist() == [[False, False], [True, True]]
        with pytest.raises(
            RewardError,
            match=r"two\.bad failed on 2 of 2.*rewards\.two\.max_failed.*ValueError: no such thing",
        ):
            scorer.check(scores)


def test_the_aspects_that_a_constructor_is_given_are_the_rewards(install: Install) -> None:
    install(slots="Slots", bounded="BoundedAspects")
    slots, bounded = (
        build("mine", name, {}, "cpu", aspects=["a"]).declaration for name in ("slots", "bounded")
    )
    assert slots.aspects == bounded.aspects == ("a",)
    assert (slots.bounds("a"), slots.groupwise) == ((0, 1), False)
    assert bounded.bounds("a") == (0, 255)
    assert not declare("mine", RewardConfig(plugin="slots", aspects={"a": AspectConfig()})).groupwise


@pytest.mark.parametrize(
    ("plugin", "chosen", "answer", "said"),
    [
        ("chosen", ["a"], {"b": 1}, "returned the aspect 'b', which it does not declare. Expected a"),
        ("chosen", ["a", "b"], {"b": 1}, "returned no aspect 'a', only b"),
        ("chosen", [], {"b": 1}, "a mapping of b, and declares no aspects"),
    ],
)
def test_an_answer_with_other_aspects_stops_the_run(
    calls: list[int], plugin: str, chosen: list[str], answer: dict[str, Any], said: str
) -> None:
    settings = RewardConfig(
        plugin=plugin, aspects={name: AspectConfig() for name in chosen}, options={"answer": answer}
    )
    with open_scorer({"two": settings}, "cpu") as scorer, pytest.raises(RewardError, match=said):
        submit(scorer, ["", ""])


def test_aspects_are_those_that_the_plugin_declares(calls: list[int]) -> None:
    with pytest.raises(ConfigError, match="no aspect 'numbr'; did you mean 'number'"):
        declare("two", RewardConfig(plugin="two", aspects={"numbr": AspectConfig()}))
    with pytest.raises(ConfigError, match=r"gives one score and declares no aspects"):
        declare("two", RewardConfig(plugin="one", aspects=BOTH))
    with pytest.raises(ConfigError, match=r"several scores: light, number.*two\.aspects=\[light,number\]"):
        check_plugins({"two": RewardConfig(plugin="two")}, {"two": "rewards.two"})
    for wrong in ("light", ["a", "a"], 3):
        with pytest.raises(RewardError, match="`aspects` is"):
            Declaration.of(type("Wrong", (), {"aspects": wrong}))


def test_a_reward_with_aspects_passes_the_checks(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    batch = sample_batch(())._replace(prompts=[str(i) for i in range(6)])
    numbers = ["1", "2", "3", "4"]
    monkeypatch.setattr("marble_cli.rewards.testing.contract.ODD_PROMPTS", numbers)
    reward = build("two", "two", {}, "cpu")
    failed = [check for check in run_checks(reward, batch) if check.outcome is Outcome.FAIL]
    assert not failed
    monkeypatch.setattr(type(reward.plugin), "range", {"light": (0, 1)})
    checks = {check.name: check for check in run_checks(build("two", "two", {}, "cpu"), batch)}
    assert "in light; declared range (0.0, 1.0)" in checks["within declared range"].detail


def test_conditions_mask_where_another_score_does_not_meet_them(calls: list[int]) -> None:
    rewards = {
        "bright": RewardConfig(plugin="one", only_if="two.number > 0.8"),
        "two": RewardConfig(plugin="two", aspects=BOTH, max_failed=1.0),
        "last": RewardConfig(plugin="one", only_if="bright >= 1 and two.light <= 3"),
    }
    with open_scorer(rewards, "cpu") as scorer:
        scores = submit(scorer, ["0.9", "0.8", "", "dunno", "7", "nan"])
        assert scorer.only(["last", "bright"]).names == ["bright", "last"]
    assert scores.applicable[0].tolist() == [True, False, False, False, True, False]
    assert same(scores.values[[0, 3]], [[0, NAN, NAN, NAN, 4, NAN], [NAN] * 6])
    assert not scores.failed[[0, 3]].any()
    with open_scorer({**rewards, "last": RewardConfig(plugin="one", only_if="bright > 0")}, "cpu") as scorer:
        assert submit(scorer, ["0.9", "0.8", "1"]).applicable[3].tolist() == [False, False, True]


def test_the_sample_with_aspects_is_declared() -> None:
    declaration = Declaration.of(TwoAspects)
    assert declaration.bounds("light") == (0, 255)
    assert declaration.bounds("number") == (None, None)
