"""Check everything of a run that needs no weights, and keep what its plan tells."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from marble_cli.balance.registry import build_for
from marble_cli.checkpoint.resume import find_checkpoint
from marble_cli.config.aspects import by_aspect, reward_keys
from marble_cli.config.counts import processes
from marble_cli.config.schema import RunConfig
from marble_cli.data.condition_checks import check_conditions
from marble_cli.data.prompts import Prompt, find_root_fault, load_prompts
from marble_cli.errors import UnreachableError
from marble_cli.evaluate.start import Start, read_start
from marble_cli.files import RUN_ENTRIES, check_inside, check_writable
from marble_cli.lock import RunLock
from marble_cli.metrics.wandb_destination import WandbDestination
from marble_cli.plan.checks import (
    check_cache,
    check_geometry,
    check_packages,
    check_plugins,
    check_trackers,
)
from marble_cli.plan.groups import check_groups
from marble_cli.policy.files import check_files
from marble_cli.policy.source import count_pictures
from marble_cli.rewards.api import Declaration
from marble_cli.rollout.sizes import check_sizes


@dataclass(frozen=True)
class Findings:
    """What the checks found.

    Attributes:
        existing: the run's folder, or the nearest above it that exists.
        checkpoint: to resume from, if any.
        start: the LoRA that training begins with, if any.
        no_prompts: why there are none yet.
        prompts: by split, `train` and `test`, and by source; empty if there are none yet.
        declarations: of the rewards, by name; empty if a server is unreachable.
        unreachable: the error of a reward's server that does not answer.
        wandb: where W&B will keep the run.
    """

    existing: Path
    checkpoint: Path | None
    start: Start | None
    no_prompts: str | None
    prompts: Mapping[str, Mapping[str, list[Prompt]]]
    declarations: Mapping[str, Declaration]
    unreachable: UnreachableError | None
    wandb: WandbDestination | None


def examine(config: RunConfig, resume: str) -> Findings:
    """Check a run before anything is loaded.

    Raises:
        RequestError: prompts, rewards, balance, geometry or the run's folder are wrong, or the folder holds
            another run.
    """
    check_geometry(config.rollout, config.trainer, processes(config.launcher))
    no_prompts = find_root_fault(config.data) if config.data.root is None else None
    prompts = {} if no_prompts else {split: load_prompts(config.data, split) for split in ("train", "test")}
    every = [*chain.from_iterable(rows for split in prompts.values() for rows in split.values())]
    check_conditions(every, config.model.path, *count_pictures(config.model, fetch=False))
    check_sizes(every, config.model, fetch=False)
    folder = Path(config.run.dir)
    existing = check_writable(folder, "run.dir=")
    check_inside(folder, RUN_ENTRIES)
    RunLock(folder).check()
    checkpoint = find_checkpoint(folder, config, resume)
    check_packages(config)
    check_cache(config.model)
    check_files(config.model)
    start = read_start(config) if checkpoint is None else None
    declarations: dict[str, Declaration] = {}
    unreachable = None
    try:
        declarations = check_plugins({**config.rewards, **config.eval_rewards}, reward_keys(config))
        check_groups(config, declarations)
    except UnreachableError as error:  # most of the plan can be printed without the server
        unreachable = error
    build_for(config.balance, by_aspect(config.rewards))
    wandb = check_trackers(config.logging)
    return Findings(existing, checkpoint, start, no_prompts, prompts, declarations, unreachable, wandb)
