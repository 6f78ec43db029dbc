"""A run's folder with two checkpoints of random weights, which the tests of this room share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from marble_cli.checkpoint import store
from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig
from marble_cli.policy.load import load_policy
from marble_cli.run.build import build_optimizer
from marble_cli.run.state import initial_progress, pack

RunConfigMaker = Callable[..., RunConfig]


@pytest.fixture(scope="session")
def run(
    run_config: RunConfigMaker, randomise: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run's folder with two checkpoints of random weights."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    config = run_config(f"run.dir={folder}")
    policy: Any = load_policy(config.model, 0)
    for step in (1, 2):
        randomise(policy, seed=step)
        progress = initial_progress(policy)
        progress.step = step
        progress.ema = {name: 0.5 * value for name, value in progress.ema.items()}
        store.save(
            folder, *pack(policy, build_optimizer(config, policy), progress), keep_last=9, best=step == 1
        )
    (folder / "config.yaml").write_text(dump(config))
    return folder
