"""Messages about a reward name it by the dotted key under which the user wrote it."""

from collections.abc import Callable
from typing import Any

import pytest

from marble_cli.config.schema import AspectConfig, RewardConfig
from marble_cli.errors import ConfigError, MarbleError, RewardError
from marble_cli.plan.checks import check_plugins
from marble_cli.rewards.scorer import open_scorer
from tests.rewards.submission import submit

SCALED: dict[str, Any] = {"plugin": "scaled", "options": {"scale": 1.0}}


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"plugin": "scaled", "options": {"scale": 1.0, "ofset": 2.0}}, "ofset: no such option"),
        ({"plugin": "scaled"}, "scale is missing"),
        ({**SCALED, "aspects": {"a": AspectConfig()}}, "aspects=[a]: the reward gives one score"),
        ({**SCALED, "url": "http://127.0.0.1:9"}, "url=http://127.0.0.1:9: no reward server"),
        ({**SCALED, "url": "http://127.0.0.1:9", "token_env": "NO_SUCH"}, "token_env=NO_SUCH: no such"),
        ({**SCALED, "options": {"scale": 1.0, "key_env": "NO_SUCH"}}, "key_env: the environment variable"),
    ],
)
def test_a_reward_is_named_by_its_own_key(
    install: Callable[..., None], settings: dict[str, Any], key: str
) -> None:
    install(scaled="Scaled")
    row = RewardConfig(**settings)
    for name in "rewards.mine", "eval_rewards.mine", "benchmark.rewards.other":
        keys = {"mine": name}
        with pytest.raises(MarbleError) as told:
            check_plugins({"mine": row}, keys)
        assert str(told.value).startswith(f"{name}.{key}")
        with pytest.raises(MarbleError) as told, open_scorer({"mine": row}, "cpu", keys=keys):
            pass
        assert str(told.value).startswith(f"{name}.{key}")


def test_a_watched_reward_that_fails_too_often_is_named_by_its_own_key(install: Callable[..., None]) -> None:
    install(answers="Answers", scaled="Scaled")
    rewards = {"mine": RewardConfig(plugin="answers"), "seen": RewardConfig(plugin="answers")}
    with open_scorer(rewards, "cpu", keys={"seen": "eval_rewards.seen"}) as scorer:
        for name, key in ("mine", " rewards.mine.max_failed"), ("seen", " eval_rewards.seen.max_failed"):
            with pytest.raises(RewardError, match=key):
                scorer.only([name]).check(submit(scorer.only([name]), ["inf"]))
    wrong = {"seen": RewardConfig(plugin="scaled", options={"scale": 1.0, "dtype": "float15"})}
    said = r"^eval_rewards\.seen\.dtype=float15"
    with (
        pytest.raises(ConfigError, match=said),
        open_scorer(wrong, "cpu", keys={"seen": "eval_rewards.seen"}),
    ):
        pass
