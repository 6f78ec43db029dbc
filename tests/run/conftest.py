"""A finished run that the tests of resuming share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from marble_cli.config.schema import RunConfig
from marble_cli.run.train import train
from tests.run.runs import SETTINGS

RunConfigMaker = Callable[..., RunConfig]


@pytest.fixture(scope="session")
def finished(run_config: RunConfigMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run of four steps."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert train(run_config("trainer.steps=4", f"run.dir={folder}", *SETTINGS), resume="auto") == 0
    return folder


@pytest.fixture(scope="module")
def plain(run_config: RunConfigMaker) -> RunConfig:
    """The configuration of `run_config` as it is."""
    return run_config()
