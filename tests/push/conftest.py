"""A short run with evaluations and pictures, and the folder that a push of it writes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from marble_cli.config.schema import RunConfig
from marble_cli.push.folder import write_folder
from marble_cli.run.train import train

REPO = "me/two-rewards"


@pytest.fixture(scope="session")
def trained(run_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps that change its pictures, with an evaluation before and after each."""
    folder = tmp_path_factory.mktemp("trained") / "first"
    settings = ("trainer.eval_every=1", "trainer.checkpoint_every=1", "logging.images_every=1")
    config = run_config(f"run.dir={folder}", *settings, "optimizer.lr=0.1", "logging.trackers=[]")
    assert train(config, resume="never") == 0
    return folder


@pytest.fixture(scope="session")
def pushed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a push of that run."""
    return write_folder(str(trained), REPO, tmp_path_factory.mktemp("pushed") / "out")
