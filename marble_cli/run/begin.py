"""Check a run on all ranks and take its folder, before anything is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from marble_cli.balance.base import Balance
from marble_cli.balance.constant import ScalarisedReward
from marble_cli.checkpoint.resume import find_checkpoint
from marble_cli.checkpoint.step_folders import remove_leftovers, steps
from marble_cli.config.aspects import reward_keys
from marble_cli.config.schema import RewardConfig, RunConfig
from marble_cli.distributed.layout import Layout, choose_layout
from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import RequestError
from marble_cli.files import RUN_ENTRIES, check_inside, check_writable
from marble_cli.lock import RunLock
from marble_cli.plan.checks import (
    check_cache,
    check_geometry,
    check_packages,
    check_plugins,
    check_trackers,
    own_device,
)
from marble_cli.plan.groups import check_groups
from marble_cli.rewards.api import Declaration
from marble_cli.run.agreement import agree_on_checkpoint, read_settings
from marble_cli.run.build import build_balance
from marble_cli.run.inputs import Inputs, read_inputs


@dataclass(frozen=True)
class Beginning:
    """What a run begins with.

    Attributes:
        checkpoint: to resume from, if any.
        named: whether the user named it.
        layout: how ranks hold parameters.
        balance: of the trained rewards.
        inputs: prompts, the LoRA to start from, and whether activations are computed again.
    """

    checkpoint: Path | None
    named: bool
    layout: Layout
    balance: Balance | ScalarisedReward
    inputs: Inputs


def begin(
    config: RunConfig, rewards: Mapping[str, RewardConfig], ranks: Ranks, run_lock: RunLock, resume: str
) -> Beginning:
    """Check what can be checked without the model, and take the run's folder.

    No rank writes a file before all have passed, but for the lock of a folder that is there already.

    Args:
        config: the configuration that all ranks have agreed on.
        rewards: the trained and the watched ones.
        ranks: of the run.
        run_lock: of the run's folder, which the first rank takes.
        resume: `auto`, `never` or a checkpoint.

    Raises:
        RequestError: the request cannot be fulfilled.
        CheckpointError: the checkpoint is missing, or its run's configuration is damaged.
        RewardError: a plugin cannot be imported, or a server cannot be reached.
    """
    folder = run_lock.folder
    with ranks.raise_together():
        device, declarations = _check(config, rewards, ranks, run_lock)
        checkpoint = find_checkpoint(folder, config, resume) if ranks.is_main else None
        if checkpoint is not None:
            read_settings(checkpoint)  # a fault is found before the model is loaded
    named = resume not in ("auto", "never")
    checkpoint = agree_on_checkpoint(ranks, folder, checkpoint, named=named)
    layout = choose_layout(config.trainer, ranks, device)
    with ranks.raise_together():
        balance = build_balance(config)
        inputs = read_inputs(config, declarations, device, ranks, resumed=checkpoint is not None)
    with ranks.raise_together():
        if ranks.is_main:
            _take(run_lock)
            remove_leftovers(folder)
    # Shards are gathered in the same order on all ranks only if all compute the same passes.
    checkpointing = replace(inputs.checkpointing, on=ranks.any(inputs.checkpointing.on))
    return Beginning(checkpoint, named, layout, balance, replace(inputs, checkpointing=checkpointing))


def _take(run_lock: RunLock) -> None:
    """Lock the run's folder, which is made if need be.

    Raises:
        RequestError: another run began in it after this one had looked for checkpoints.
    """
    folder, held = run_lock.folder, run_lock.is_held
    folder.mkdir(parents=True, exist_ok=True)
    run_lock.acquire()
    if not held and ((folder / "config.yaml").is_file() or steps(folder)):
        raise RequestError(
            f"{folder} has become the folder of another run meanwhile. Nothing was changed. Start again "
            "to resume that run, or choose another folder with run.dir=..."
        )


def _check(
    config: RunConfig, rewards: Mapping[str, RewardConfig], ranks: Ranks, run_lock: RunLock
) -> tuple[torch.device, dict[str, Declaration]]:
    """Check devices, the run's folder, packages and rewards; lock the folder if it exists."""
    check_geometry(config.rollout, config.trainer, ranks.world)
    device = own_device(config.model.device, ranks.world)
    if ranks.is_main:
        check_writable(run_lock.folder, "run.dir=")
        check_inside(run_lock.folder, RUN_ENTRIES)
        if run_lock.folder.is_dir():
            run_lock.acquire()
        check_trackers(config.logging)
    check_packages(config)
    check_cache(config.model)
    declarations = check_plugins(rewards, reward_keys(config))
    check_groups(config, declarations)
    return device, declarations
