"""Configuration of rewards: keys of the schema, options of plugins, and rewards that are not installed."""

import logging

import pytest

from marble_cli.config.compose import compose
from marble_cli.config.schema import (
    RewardConfig,
)
from marble_cli.errors import ConfigError
from tests.config.composing import BUILT_IN


def test_reward_keys_are_split_into_schema_and_plugin_options() -> None:
    config = compose(
        [
            BUILT_IN,
            "+rewards.mine={plugin: compressibility, weight: 2, quality: 40, sources: [text]}",
            "rewards.compressibility.quality=50",
            "rewards.compressibility.timeout=5",
            "+rewards.colorfulness.nested={a: [1, 2]}",
        ]
    )
    assert config.rewards == {
        "colorfulness": RewardConfig("colorfulness", options={"nested": {"a": [1, 2]}}),
        "compressibility": RewardConfig("compressibility", timeout=5.0, options={"quality": 50}),
        "mine": RewardConfig("compressibility", weight=2.0, sources=["text"], options={"quality": 40}),
    }


def test_reward_is_removed_added_and_weighted() -> None:
    assert list(compose([BUILT_IN, "~rewards.colorfulness"]).rewards) == ["compressibility"]
    assert list(compose([BUILT_IN, "+rewards.b={plugin: colorfulness}"]).rewards) == [
        "colorfulness",
        "compressibility",
        "b",
    ]
    assert (
        compose([BUILT_IN, "rewards.compressibility.weight=0.25"]).rewards["compressibility"].weight == 0.25
    )
    assert list(compose(["rewards=compressibility"]).rewards) == ["compressibility"]
    assert list(compose(["rewards=[compressibility,colorfulness]"]).rewards) == [
        "compressibility",
        "colorfulness",
    ]


def test_watched_reward_is_added() -> None:
    config = compose(["rewards=colorfulness", "+eval_rewards.small={plugin: compressibility, quality: 30}"])
    assert config.eval_rewards == {"small": RewardConfig("compressibility", options={"quality": 30})}


def test_optional_reward_not_installed_is_left_out_with_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "marble"):
        config = compose([BUILT_IN, "+rewards.more={plugin: nowhere, optional: true}"])
    assert list(config.rewards) == ["colorfulness", "compressibility"]
    assert "reward more is not installed; the run leaves it out" in caplog.text


def test_plugin_that_an_override_names_is_required() -> None:
    typo = ["rewards=[ocr,compressibility]", "rewards.ocr.plugin=orc"]
    with pytest.raises(
        ConfigError, match="rewards.ocr.plugin=orc: no such reward is installed; did you mean 'o"
    ):
        compose(typo)
    assert list(compose([*typo, "rewards.ocr.optional=true"]).rewards) == ["compressibility"]


@pytest.mark.parametrize("place", ["url: 'http://far:8600'", "isolated: true"])
def test_reward_with_url_or_isolated_need_not_be_installed(place: str) -> None:
    far = compose([BUILT_IN, f"+rewards.far={{plugin: nowhere, optional: true, {place}}}"]).rewards["far"]
    assert (far.url, far.isolated) in ((None, True), ("http://far:8600", False))
