"""Overrides become a typed configuration."""

from collections.abc import Callable
from pathlib import Path

import hydra
import pytest

from marble_cli.config.compose import compose, dump, load_resolved
from marble_cli.config.enums import OdeSolver, Precision, SharedTerm, Switch
from marble_cli.config.schema import RunConfig
from marble_cli.errors import ConfigError
from tests.config.composing import BUILT_IN


def test_override_gets_type_of_its_key() -> None:
    config = compose(
        [
            BUILT_IN,
            "trainer.steps=7",
            "optimizer.lr=1",
            "model.precision=bf16",
            "rollout.solver=euler",
            "trainer.times_per_image=null",
            "balance.shared_term=outside",
            "optimizer.betas=[0.5,0.6]",
            "run.dir='a folder/${run.name}'",
            "run.name=x",
            "algorithm.advantage.std=group",
        ]
    )
    assert (config.trainer.steps, config.trainer.times_per_image) == (7, None)
    assert isinstance(config.optimizer.lr, float)
    assert config.model.precision is Precision.bf16
    assert config.rollout.solver is OdeSolver.euler
    assert config.balance.shared_term is SharedTerm.outside
    assert config.optimizer.betas == [0.5, 0.6]
    assert config.run.dir == str(Path("a folder/x").absolute())
    assert config.algorithm.advantage.std.value == "group"


def test_switch_takes_auto_and_booleans_as_files_and_overrides_write_them(tmp_path: Path) -> None:
    default = compose([BUILT_IN, "run.name=x"])
    assert default.model.compile is Switch.auto
    for switch in Switch:
        config = compose([BUILT_IN, "run.name=x", f"model.compile={switch.name}"])
        assert config.model.compile is switch
        file = tmp_path / f"{switch.name}.yaml"
        file.write_text(dump(config))
        assert load_resolved(file) == compose([], str(file)) == config
        assert compose(["model.compile=auto"], str(file)) == default
    older = tmp_path / "older.yaml"  # whose key was a boolean
    older.write_text(dump(default).replace("compile: auto", "compile: false"))
    assert load_resolved(older) == compose([], str(older))
    assert load_resolved(older).model.compile is Switch.false


@pytest.mark.parametrize("value", ["1", "on", "TRUE1"])
def test_switch_refuses_another_value_and_names_its_own(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^model\.compile=.*Known: auto, false, true"):
        compose([BUILT_IN, f"model.compile={value}"])


def test_one_value_for_a_list_is_refused_with_the_form_of_a_list() -> None:
    with pytest.raises(ConfigError, match=r"^logging\.trackers: expected a list, such as \[a,b\]\.$"):
        compose([BUILT_IN, "logging.trackers=tensorboard"])


def test_command_line_overrides_preset() -> None:
    config = compose(["preset=tiny", BUILT_IN, "rollout.groups=3"])
    assert list(config.rewards) == ["colorfulness", "compressibility"]
    assert config.rollout.groups == 3


def test_config_name_chooses_root() -> None:
    assert compose([BUILT_IN, "run.name=x"], "config") == compose([BUILT_IN, "run.name=x"])
    with pytest.raises(
        ConfigError, match=r"no config 'confg'; did you mean 'config'\? Known: config, or the path"
    ):
        compose([], "confg")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml does not exist"):
        compose([], "nowhere.yaml")


def outcome(*overrides: str) -> str:
    try:
        return dump(compose([BUILT_IN, "run.name=x", *overrides]))
    except ConfigError as error:
        return str(error)


@pytest.mark.parametrize(
    "overrides",
    [
        ["~preset", "model=sd3", "balance=mgda", "++trainer.steps=3", "+rewards.x={plugin: colorfulness}"],
        ["trainer.steps=5", "trainer={steps: 3}", "~rewards.colorfulness"],
        ["run.name=${trainer.seed}", "optimizer.lr=many"],
        ["balance=mrble"],
        ["~rewards.colorfulnes"],
        ["trainer=[default,default]"],
        ["trainer.steps.x=1", "launcher.nproc=2"],
    ],
)
def test_files_that_tests_compose_once_give_what_hydra_gives(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    """As tests/compositions.py shares them; with the same words if they are wrong."""
    shared = outcome(*overrides)
    monkeypatch.setattr("marble_cli.config.compose.hydra_compose", hydra.compose)
    assert outcome(*overrides) == shared


def test_the_configurations_of_tests_are_what_is_composed(
    base_overrides: list[str], run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """They are composed once for all folders of a run."""
    for folder in (tmp_path, tmp_path / "other", "relative", f"'{tmp_path}/it is'"):
        more = ["balance=mgda", "trainer.steps=3", f"run.dir={folder}"]
        assert run_config(*more) == compose([*base_overrides, *more])
