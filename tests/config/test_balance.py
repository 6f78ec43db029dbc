"""Configuration of the balance: keys that take names, and keys that a balance cannot use."""

import re
from pathlib import Path
from typing import Any

import pytest

from marble_cli.balance.registry import build
from marble_cli.balance.registry import names as balances
from marble_cli.config.compose import compose
from marble_cli.config.enums import BalanceMode, Reduce, RefreshWhen, Role
from marble_cli.config.schema import RewardConfig
from marble_cli.config.validate import validate
from marble_cli.errors import ConfigError
from tests.config.composing import BUILT_IN, written

STALE = ("balance.mode=amortized", "balance.refresh_when=stale")


def test_weights_of_balance_that_finds_its_own_are_refused() -> None:
    assert compose([BUILT_IN, "balance=fixed", "balance.weights.colorfulness=2"]).balance.weights == {
        "colorfulness": 2.0
    }
    assert compose(
        [BUILT_IN, "balance=weighted_sum", "balance.weights={colorfulness: 2, compressibility: 1}"]
    ).balance.weights == {
        "colorfulness": 2.0,
        "compressibility": 1.0,
    }
    with pytest.raises(ConfigError, match="finds its own"):
        compose([BUILT_IN, "balance=mgda", "balance.weights.colorfulness=2"])
    with pytest.raises(ConfigError, match=r"balance\.options: balance=marble takes none"):
        compose([BUILT_IN, "balance.options.c=1"])
    with pytest.raises(ConfigError, match=r"balance\.weights: balance=torchjd:UPGrad finds its own"):
        compose([BUILT_IN, "balance=torchjd:UPGrad", "balance.weights.colorfulness=2"])


def test_groups_and_priorities_survive_dump(tmp_path: Path) -> None:
    config, file = written(
        tmp_path, BUILT_IN, "balance.groups.both=[colorfulness,compressibility]", "balance.priorities.both=2"
    )
    assert config.balance.groups == {"both": ["colorfulness", "compressibility"]}
    assert config.balance.priorities == {"both": 2.0}
    assert compose([], file) == config
    assert compose(["~balance.groups.both", "~balance.priorities.both"], file).balance.groups == {}
    whole = compose([BUILT_IN, "balance=mgda", "balance.groups={a: [colorfulness], b: [compressibility]}"])
    assert whole.balance.groups == {"a": ["colorfulness"], "b": ["compressibility"]}


def test_weighted_sum_reduces_by_sum_or_mean() -> None:
    assert compose([BUILT_IN, "balance=weighted_sum"]).balance.reduce is Reduce.sum
    assert compose([BUILT_IN, "balance=weighted_sum", "balance.reduce=mean"]).balance.reduce is Reduce.mean
    with pytest.raises(ConfigError, match=r"balance\.reduce"):
        compose([BUILT_IN, "balance=weighted_sum", "balance.reduce=median"])


@pytest.mark.parametrize("name", [*sorted({*balances()} - {"weighted_sum"}), "torchjd:UPGrad"])
def test_mean_of_other_balance_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^balance\.reduce=mean: balance={name} .*balance=weighted_sum"):
        compose([BUILT_IN, f"balance={name}", "balance.reduce=mean"])


@pytest.mark.parametrize(
    "name", ["equal", "fixed", "upgrad", "weighted_sum", "advantage_sum", "torchjd:UPGrad"]
)
@pytest.mark.parametrize("key", ["groups.a=[colorfulness]", "priorities.colorfulness=2"])
def test_groups_and_priorities_without_qp_are_refused(name: str, key: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^balance\.{re.split('[.=]', key)[0]}\S*: balance={name} .*balance=marble, mgda"
    ):
        compose([BUILT_IN, f"balance={name}", f"balance.{key}"])


@pytest.mark.parametrize("name", ["weighted_sum", "advantage_sum"])
def test_output_space_of_scalarised_rewards_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"balance={name} mixes the rewards before"):
        compose([BUILT_IN, f"balance={name}", "balance.mode=output_space"])


def test_output_space_in_another_space_is_refused() -> None:
    assert compose([BUILT_IN, "balance=output_space"]).balance.mode is BalanceMode.output_space
    with pytest.raises(ConfigError, match=r"balance\.mode=full: balance=output_space .* is balance=marble\."):
        compose([BUILT_IN, "balance=output_space", "balance.mode=full"])


@pytest.mark.parametrize("setting", ["balance=weighted_sum", "balance.mode=full"])
def test_staleness_without_cached_shares_is_refused(setting: str) -> None:
    assert compose([BUILT_IN, *STALE]).balance.refresh_when is RefreshWhen.stale
    with pytest.raises(ConfigError, match=r"refresh_when=stale: .*caches no shares.*mode=amortized"):
        compose([BUILT_IN, *STALE, setting])


def test_staleness_of_balance_that_keeps_averages_is_refused() -> None:
    pytest.importorskip("torchjd")
    config = compose([BUILT_IN, "balance=torchjd:GradVac", *STALE])
    with pytest.raises(ConfigError, match="averages over the refreshes.*refresh_when=scheduled"):
        build(config.balance, list(config.rewards), [1.0, 1.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colorfulness": {"role": Role.guard}}, "every reward is a guard, so nothing would be learned"),
        ({"colorfulness": {"margin": 0.1}}, r"rewards\.colorfulness\.margin=0\.1: only guards have one"),
        ({"watched": {"role": Role.guard}}, r"eval_rewards\.watched\.role=guard: it is only watched"),
        ({"compressibility": {"margin": 1.0}}, r"margin=1\.0: expected a number in \[0, 1\)"),
        ({"priorities": {"compressibility": 2.0}}, r"balance\.priorities: compressibility is a guard"),
        (
            {"groups": {"both": ["colorfulness", "compressibility"]}},
            r"balance\.groups\.both: compressibility is",
        ),
    ],
)
def test_guards_that_cannot_work_are_refused(change: dict[str, Any], message: str) -> None:
    config = compose([BUILT_IN])
    config.rewards["compressibility"].role = Role.guard
    config.eval_rewards["watched"] = RewardConfig("colorfulness")
    parts = {**config.rewards, **config.eval_rewards}
    for name, values in change.items():
        if name not in parts:
            setattr(config.balance, name, values)
        for key, value in values.items() if name in parts else ():
            setattr(parts[name], key, value)
    with pytest.raises(ConfigError, match=message):
        validate(config)


def test_a_guard_survives_dump(tmp_path: Path) -> None:
    guard = ("rewards.compressibility.role=guard", "rewards.compressibility.margin=0.2")
    config, file = written(tmp_path, BUILT_IN, *guard)
    again = compose([], file).rewards["compressibility"]
    assert (again.role, again.margin) == (Role.guard, 0.2)
    assert again == config.rewards["compressibility"]
