"""A dumped configuration repeats the run, alone and with overrides."""

import dataclasses
from pathlib import Path

import pytest

from marble_cli.config.compose import compose, dump, load_resolved
from marble_cli.config.schema import (
    RewardConfig,
)
from marble_cli.errors import ConfigError
from tests.config.composing import BUILT_IN, written

MANY = [
    "rewards=[compressibility,colorfulness]",
    "+rewards.mine={plugin: compressibility, quality: 40, sources: [text]}",
    "+eval_rewards.watch={plugin: colorfulness}",
    "balance=fixed",
    "balance.weights.mine=3",
    "model.lora.rank=5",
    "trainer.times_per_image=null",
    "optimizer.lr=1e-5",
    "run.dir='with space/${run.name}'",
    "model.revision='123'",
]


def test_dumped_file_composes_to_same_configuration(tmp_path: Path) -> None:
    config, file = written(tmp_path, *MANY)
    assert compose([], file) == config
    assert load_resolved(Path(file)) == config
    assert list(compose([], file).rewards) == ["compressibility", "colorfulness", "mine"]
    assert dump(compose([], file)) == dump(config)


def test_resolved_file_takes_overrides(tmp_path: Path) -> None:
    config, file = written(tmp_path, *MANY)
    again = compose(
        [
            "trainer.steps=3",
            "rewards.mine.quality=20",
            "~rewards.colorfulness",
            "+rewards.b={plugin: colorfulness}",
        ],
        file,
    )
    assert again.trainer.steps == 3
    assert list(again.rewards) == ["compressibility", "mine", "b"]
    assert again.rewards["mine"].options == {"quality": 20}
    assert again.rewards["mine"].sources == ["text"]
    assert dataclasses.replace(again, trainer=config.trainer, rewards=config.rewards) == config


def test_choice_replaces_whole_group_of_resolved_file(tmp_path: Path) -> None:
    config, file = written(tmp_path, *MANY)
    again = compose(["balance=mgda", "balance.floor=0.1", "rewards=[colorfulness]"], file)
    assert again.balance == compose(["~preset", "balance=mgda", "balance.floor=0.1"]).balance
    assert again.rewards == {"colorfulness": RewardConfig("colorfulness")}
    assert again.model == config.model


@pytest.mark.parametrize("choice", ["optimizer=adamw8bit", "algorithm=nft", "trainer=default"])
def test_choice_on_resolved_file_brings_no_value_of_the_roots_preset(tmp_path: Path, choice: str) -> None:
    config, file = written(tmp_path, "~preset", BUILT_IN, "run.name=x")
    assert compose([choice], file) == compose(["~preset", BUILT_IN, "run.name=x", choice])
    group = choice.partition("=")[0]
    assert getattr(config, group) != getattr(compose([BUILT_IN]), group), "the preset would show"


def test_chosen_reward_of_resolved_file_takes_the_files_values(tmp_path: Path) -> None:
    _, file = written(tmp_path, *MANY, "model.clip=mine")
    assert compose(["rewards=[clipscore]"], file).rewards["clipscore"].options["model"] == "mine"


def test_plus_adds_rewards_to_those_of_resolved_file(tmp_path: Path) -> None:
    config, file = written(tmp_path, *MANY, "model.clip=mine")
    again = compose(["+rewards@eval_rewards=[keeping,clipscore]"], file)
    assert list(again.eval_rewards) == ["watch", "keeping", "clipscore"]
    assert again.eval_rewards["clipscore"].options["model"] == "mine"
    assert dataclasses.replace(again, eval_rewards=config.eval_rewards) == config
    again = compose(["rewards=[compressibility]", "+rewards=[keeping]"], file)
    assert list(again.rewards) == ["compressibility", "keeping"]
    assert again.eval_rewards == config.eval_rewards


def test_preset_on_resolved_file_is_refused(tmp_path: Path) -> None:
    _, file = written(tmp_path, *MANY)
    with pytest.raises(ConfigError, match="preset=tiny: .* is resolved"):
        compose(["preset=tiny"], file)


def test_mistake_on_resolved_file_names_nearest(tmp_path: Path) -> None:
    _, file = written(tmp_path, *MANY)
    for override, said in (
        ("trainer.step=3", "did you mean 'trainer.steps'"),
        ("balance=mdga", "did you mean 'mgda'"),
        ("rewards=[]", "rewards is empty"),
        ("balance=[marble,mgda]", "expected one choice"),
        ("+rewards@eval_rewards=[kepeing]", "did you mean 'keeping'"),
        ("~rewards.min", "did you mean 'mine'"),
        ("trainer.steps=x", "trainer.steps"),
    ):
        with pytest.raises(ConfigError, match=said):
            compose([override], file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- 1\n", "holds no mapping"),
        ("a: [\n", "cannot be read"),
        ("foo: 1\n", "there is no key 'foo'"),
        ("trainer:\n  stepz: 1\n", "did you mean 'trainer.steps'"),
        ("trainer:\n  steps: 1\n", "has no value, nor have"),
        ("preset: tiny\n", "c.yaml holds preset. Expected a run's config.yaml, which has the value of every"),
        ("defaults: [config]\n", "c.yaml holds defaults. Expected"),
        ("rewards:\n  a: 1\n", "rewards.a=1: expected keys"),
        ("rewards: x\n", "rewards=x: expected keys, such as rewards.NAME.plugin=..."),
        ("eval_rewards: [x]\n", "eval_rewards=['x']: expected keys, such as eval_rewards.NAME.plugin=..."),
        ("trainer: [x]\n", "trainer=['x']: expected keys, such as trainer.steps=..."),
    ],
)
def test_invalid_file_is_refused_with_reason(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError) as error:
        compose([], str(file))
    assert said in str(error.value)


def test_compositions_are_independent(tmp_path: Path) -> None:
    before = compose([BUILT_IN, "run.name=x"])
    _, file = written(tmp_path, *MANY)
    compose(["trainer.steps=3"], file)
    with pytest.raises(ConfigError):
        compose(["trainer.stepz=3"])
    assert compose([BUILT_IN, "run.name=x"]) == before
