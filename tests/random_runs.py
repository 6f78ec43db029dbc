"""Write the folder of a run whose weights are random."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from marble_cli.checkpoint import store
from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig
from marble_cli.policy.load import load_policy
from marble_cli.run.build import build_optimizer
from marble_cli.run.state import initial_progress, pack


def write_random_run(config: RunConfig, randomise: Callable[..., None]) -> Any:
    """Write configuration and a checkpoint of step 1 into `run.dir`; return the policy with its weights."""
    folder = Path(config.run.dir)
    policy: Any = load_policy(config.model, 0)
    randomise(policy)
    progress = initial_progress(policy)
    progress.step = 1
    store.save(folder, *pack(policy, build_optimizer(config, policy), progress), keep_last=1, best=False)
    (folder / "config.yaml").write_text(dump(config))
    return policy
