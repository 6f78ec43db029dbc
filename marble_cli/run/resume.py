"""Restore a run's folder, policy, optimizer and balance from a checkpoint."""

import logging
from dataclasses import replace
from pathlib import Path

import torch

from marble_cli.balance.base import Balance
from marble_cli.balance.cache import DirectionCache
from marble_cli.balance.constant import ScalarisedReward
from marble_cli.checkpoint import step_folders
from marble_cli.checkpoint.manifest import REMEDY
from marble_cli.checkpoint.resume import newest_checkpoint, warn_skipped
from marble_cli.config.aspects import by_aspect
from marble_cli.config.compose import dump
from marble_cli.config.evaluation import pictured
from marble_cli.config.references import as_tree
from marble_cli.config.schema import RunConfig
from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import CheckpointError
from marble_cli.files import write_whole
from marble_cli.metrics.wandb_history import forget_identity
from marble_cli.policy.base import Policy
from marble_cli.policy.provenance import check_provenance, read_provenance
from marble_cli.run.agreement import (
    StoredCheckpoint,
    agree_on_checkpoint,
    balance_settings,
    read_checkpoint,
)
from marble_cli.run.balance_state import restore_balance_state
from marble_cli.run.state import Progress, initial_progress, unpack

log = logging.getLogger("marble.run")


def prepare_folder(folder: Path, checkpoint: Path | None, progress: Progress, config: RunConfig) -> None:
    """Restore the run's folder to its state at `checkpoint`, and write the configuration into it."""
    for path in step_folders.set_aside(folder, progress.step) if checkpoint else ():
        log.warning("resuming before %s, which is kept as %s", path.name.split("-", 1)[1], path.name)
    step_folders.point_best(folder, progress.best_step)
    if not (folder / "config.yaml").is_file():
        forget_identity(folder)
    if checkpoint is None or not (folder / "config.yaml").is_file():
        write_whole(folder / "config.yaml", dump(config))


def resume_from(
    ranks: Ranks,
    folder: Path,
    checkpoint: Path | None,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    config: RunConfig,
    balance: Balance | ScalarisedReward | None = None,
    *,
    named: bool,
) -> tuple[Path | None, Progress]:
    """Restore policy, optimizer and balance from `checkpoint`, or from an older one if it does not fit.

    Args:
        ranks: the ranks of the run.
        folder: the run's folder.
        checkpoint: the checkpoint to try first; None starts from the beginning.
        policy: the policy to restore.
        optimizer: the optimizer to restore.
        config: the configuration of the run.
        balance: the balance to restore.
        named: whether the user named the checkpoint; then no older one is tried.

    Returns:
        The checkpoint that was used, and its progress.

    Raises:
        CheckpointError: the checkpoint does not fit, and was named or has no older one.
    """
    while True:
        stored = None if checkpoint is None else read_checkpoint(ranks, checkpoint)
        fault, progress = None, None
        with ranks.raise_together():
            try:
                progress = restore(stored, policy, optimizer, config, balance)
            except CheckpointError as error:
                fault = error
        if not ranks.any(progress is None):
            assert progress is not None
            return checkpoint, progress
        older = None
        with ranks.raise_together():
            if checkpoint is not None and ranks.is_main:
                fault = fault or CheckpointError(f"{checkpoint} fits on this node, but not on another.")
                older = None if named else newest_checkpoint(folder, step_folders.step_of(checkpoint))
                if older is None:
                    raise fault
                warn_skipped(checkpoint, str(fault))
        checkpoint = agree_on_checkpoint(ranks, folder, older, named=True)


def restore(
    stored: StoredCheckpoint | None,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    config: RunConfig,
    balance: Balance | ScalarisedReward | None = None,
) -> Progress:
    """Load a checkpoint into the policy, the optimizer and the balance; return its progress.

    The state of the balance is dropped if the rewards or the balance have changed, and so are scores of
    evaluations that drew their images differently.

    Args:
        stored: the checkpoint; None returns the progress of a new run.
        policy: the policy to restore.
        optimizer: the optimizer to restore.
        config: the configuration of the run.
        balance: the balance to restore.

    Raises:
        CheckpointError: the checkpoint belongs to another model, LoRA or kind of training, or is damaged.
    """
    metric = config.trainer.best
    if stored is None:
        return replace(initial_progress(policy), best_metric=metric)
    checkpoint, state, rewards = stored.path, stored.state, stored.rewards
    check_provenance(read_provenance(state.info, state.train), policy.provenance(), str(checkpoint))
    progress = unpack(policy, optimizer, state, stored.weights, stored.ema)
    log.info("continuing after step %d from %s", progress.step, checkpoint)
    if progress.step >= config.trainer.steps:
        log.warning("step %d of trainer.steps=%d is done already", progress.step, config.trainer.steps)
    now, names = as_tree(config), list(by_aspect(config.rewards))
    if rewards is not None and rewards != names:
        log.warning("%s was trained on %s; the balance starts anew", checkpoint, ", ".join(rewards))
        return Progress(progress.step, DirectionCache(), progress.ema, {}, best_metric=metric)
    if stored.balance not in (None, balance_settings(now)):
        log.warning("%s was trained with another balance; this run's balance starts anew", checkpoint)
        progress.cache, progress.balance = DirectionCache(), None
    elif progress.step:
        restore_balance_state(balance, progress.balance, checkpoint)
    if stored.evaluation not in (None, pictured(now)):
        log.warning(
            "evaluations of %s drew images differently; base scores and the best are determined anew",
            checkpoint,
        )
        progress = replace(progress, base_scores={}, best=None, best_step=None, evaluated=-1)
    if progress.cache.alpha is not None and len(progress.cache.alpha) != len(names):
        raise CheckpointError(
            f"{checkpoint} is damaged: its balance has shares of {len(progress.cache.alpha)} rewards, and "
            f"the run has {len(names)} rewards. {REMEDY}"
        )
    if progress.best_metric != metric:
        log.warning(
            "the best checkpoint was chosen by %s so far; from here on it is chosen by %s",
            progress.best_metric,
            metric,
        )
        progress.best, progress.best_step, progress.best_metric = None, None, metric
    return progress
