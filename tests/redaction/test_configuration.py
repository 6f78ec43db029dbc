"""A configuration is written with references in place of its secrets."""

import os
from pathlib import Path

import pytest

from marble_cli.checkpoint.resume import differences
from marble_cli.config import references
from marble_cli.config.compose import compose, dump, load_resolved
from marble_cli.errors import ConfigError
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
