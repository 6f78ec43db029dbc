"""How aspects of rewards and conditions are written, named and refused."""

from pathlib import Path

import pytest

from marble_cli.checkpoint.resume import differences
from marble_cli.config.aspects import by_aspect
from marble_cli.config.compose import compose
from marble_cli.config.conditions import Condition, parse_condition
from marble_cli.errors import ConfigError
from marble_cli.run.build import build_balance
from tests.config.composing import BUILT_IN, written

JUDGE = "+rewards.judge={plugin: colorfulness, weight: 3}"


def test_aspects_have_the_keys_of_their_reward_unless_they_set_their_own(tmp_path: Path) -> None:
    config, file = written(
        tmp_path,
        "rewards=[compressibility]",
        JUDGE,
        'rewards.judge.aspects={style: {}, alignment: {weight: 2, only_if: "judge.style > 1"}}',
        "balance.priorities.judge.style=2",
        "balance.groups.vlm=[judge.alignment,compressibility]",
        "trainer.best=reward/judge.style/mean",
    )
    rewards = by_aspect(config.rewards)
    assert {name: row.weight for name, row in rewards.items()} == {
        "compressibility": 1.0,
        "judge.style": 3.0,
        "judge.alignment": 2.0,
    }
    assert rewards["judge.alignment"].only_if == "judge.style > 1"
    assert config.balance.priorities == {"judge.style": 2.0}
    build_balance(config)
    assert compose([], file) == config

    changed = compose(["balance.priorities.judge.style=3", "rewards.judge.weight=4"], file)
    assert changed.balance.priorities == {"judge.style": 3.0}
    assert by_aspect(changed.rewards)["judge.style"].weight == 4.0
    fewer = compose(
        ["rewards.judge.aspects=[alignment]", "trainer.best=eval/composite", "~balance.groups"], file
    )
    assert list(by_aspect(fewer.rewards)) == ["compressibility", "judge.alignment"]


def test_a_resumed_run_keeps_its_aspects_and_their_order() -> None:
    one, other, third = (
        compose([BUILT_IN, JUDGE, f"rewards.judge.aspects={names}"]) for names in ("[a,b]", "[b,a]", "[a]")
    )
    assert [str(found) for found in differences(one, other)] == [
        'the order of rewards: ["colorfulness", "compressibility", "judge.a", "judge.b"] there, '
        '["colorfulness", "compressibility", "judge.b", "judge.a"] now'
    ]
    assert [found.key for found in differences(one, third)] == ["rewards.judge.aspects.b"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "rewards.judge.aspects=style",
            r"expected a list, such as rewards.judge.aspects=\[a",
        ),
        ("rewards.judge.aspects={a: {margin: 0.1}}", "judge.aspects.a.margin=0.1: only guards have one"),
        ("rewards.judge.aspects={a: 3}", "judge.aspects.a=3: expected keys"),
        ("rewards.judge.aspects=[a,a]", "a is there twice"),
        ("rewards.judge.aspects=[a.b]", "'a.b' is no name of an aspect"),
        ("rewards.judge.aspects={a: {wieght: 1}}", "aspects.a.wieght: .* did you mean 'weight'"),
        (
            "rewards.judge.aspects={a: {weight: -1}}",
            "judge.aspects.a.weight=-1.0: expected at least 0",
        ),
        (
            "rewards.judge.aspects={a: {sources: [nowhere]}}",
            "a.sources: there is no source 'nowhere'",
        ),
        ("balance.priorities.judge.c=2", "no reward or group 'judge.c'"),
    ],
)
def test_a_wrong_aspect_is_refused(word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_balance(compose([BUILT_IN, JUDGE, word]))


def test_keys_beside_a_list_of_names_are_refused() -> None:
    words = ["rewards.judge.aspects=[a,b]", "rewards.judge.aspects.a.weight=2"]
    with pytest.raises(ConfigError, match="rewards.judge.aspects is a list here. Expected a mapping"):
        compose([BUILT_IN, JUDGE, *words])
    assert by_aspect(compose([BUILT_IN, JUDGE, words[1]]).rewards)["judge.a"].weight == 2.0


def test_a_condition_is_one_or_more_comparisons() -> None:
    assert parse_condition(" ocr>0.8 and  judge.style <= -1e-3 and a-b >= 1.") == (
        Condition("ocr", ">", 0.8),
        Condition("judge.style", "<=", -1e-3),
        Condition("a-b", ">=", 1.0),
    )


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("compressibility", "expected NAME OP NUMBER"),
        ("", "expected NAME OP NUMBER"),
        ("compressibility == 1", "expected NAME OP NUMBER"),
        ("compressibility > nan", "expected NAME OP NUMBER"),
        ("compressibility > 1 or judge > 2", "expected NAME OP NUMBER"),
        ("0 < compressibility", "expected NAME OP NUMBER"),
        ("colorfulness > 1", "names the reward itself"),
        ("compresibility > 1", "no reward 'compresibility' in this run; did you mean 'compressibility'"),
        ("watched > 1", "watched is under eval_rewards, so training does not score it"),
        ("judge > 1", "the conditions of colorfulness -> judge -> colorfulness are circular"),
    ],
)
def test_a_wrong_condition_is_refused(condition: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        compose(
            [
                BUILT_IN,
                "+rewards.judge={plugin: colorfulness, only_if: 'colorfulness < 3'}",
                "+eval_rewards.watched={plugin: colorfulness, only_if: 'judge > 1'}",
                f"rewards.colorfulness.only_if='{condition}'",
            ]
        )
