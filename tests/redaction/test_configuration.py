"""A configuration is written with references in place of its secrets."""

import os
from pathlib import Path

import pytest

from marble_cli.checkpoint.resume import differences
from marble_cli.config import references
from marble_cli.config.compose import compose, dump, load_resolved
from marble_cli.errors import ConfigError
from marble_cli.redaction import redact
from tests.redaction.samples import HELD, SECRET, secretive


def test_config_yaml_has_references_and_repeats_the_run(tmp_path: Path) -> None:
    config = compose(secretive())
    text = dump(config)
    assert not any(secret in text for secret in HELD)
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert load_resolved(file) == config == compose([], str(file))
    assert differences(load_resolved(file), config) == []
    assert dump(load_resolved(file)) == text


def test_all_below_the_name_of_a_secret_is_written_as_references(tmp_path: Path) -> None:
    token = "{main: alphabravo1, key_env: NOWHERE, spare: [charlie-22,314159.5,7,true,null]}"
    mine = f"+rewards.mine={{plugin: colorfulness, api_key: 123456789012, token: {token}}}"
    config = compose(["preset=tiny", "rewards=[colorfulness]", mine])
    options = config.rewards["mine"].options
    text = dump(config)
    assert not any(secret in text for secret in ("123456789012", "alphabravo1", "charlie-22", "314159.5"))
    assert redact("123456789012 [alphabravo1] 314159.5 7") == "*** [***] *** 7"
    assert "key_env: NOWHERE" in text
    (tmp_path / "config.yaml").write_text(text)
    assert load_resolved(tmp_path / "config.yaml") == config
    assert options["api_key"] == 123456789012
    assert options["token"]["spare"] == ["charlie-22", 314159.5, 7, True, None]


def test_rewards_may_be_called_like_secrets() -> None:
    settings = "+rewards.secret={plugin: colorfulness, weight: 1.125, level: 4096}"
    config = compose(
        ["preset=tiny", "balance=fixed", "rewards=[]", settings, "balance.weights={secret: 1.125}"]
    )
    assert "oc." not in dump(config)


def test_reference_names_the_users_own_variable() -> None:
    os.environ["MINE_KEY"] = SECRET
    override = "+rewards.mine={plugin: colorfulness, api_key: '${oc.env:MINE_KEY}'}"
    config = compose(["preset=tiny", "rewards=[colorfulness]", override])
    assert config.rewards["mine"].options["api_key"] == SECRET
    assert "api_key: ${oc.env:MINE_KEY}" in dump(config)


def test_missing_secret_is_refused_by_its_variable(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(dump(compose(secretive())))
    del os.environ[f"{references.PREFIX}REWARDS_MINE_OPTIONS_API_KEY"]
    with pytest.raises(ConfigError, match="MARBLE_SECRET_REWARDS_MINE_OPTIONS_API_KEY"):
        load_resolved(tmp_path / "config.yaml")


def test_configuration_without_secrets_is_written_unchanged() -> None:
    assert "oc.env" not in dump(compose(["preset=tiny"]))
