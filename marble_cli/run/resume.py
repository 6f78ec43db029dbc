"""Restore a run's folder, policy, optimizer and balance from a checkpoint."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from marble_cli.balance.base import Balance
from marble_cli.balance.cache import DirectionCache
from marble_cli.balance.constant import ScalarisedReward
from marble_cli.checkpoint import step_folders
from marble_cli.checkpoint.manifest import REMEDY
from marble_cli.checkpoint.resume import newest_checkpoint, warn_skipped
from marble_cli.config.aspects import by_aspect
from marble_cli.config.compose import dump
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
from marble_cli.run.basis import describe_changes
from marble_cli.run.state import Progress, initial_progress, unpack

log = logging.getLogger("marble.run")


def prepare_folder(folder: Path, checkpoint: Path | None, progress: Progress) -> None:
    """Restore the run's folder to its state at `checkpoint`."""
    if checkpoint is not None:
        of_run = checkpoint.resolve() == step_folders.place(folder, progress.step).resolve()
        for path in step_folders.set_aside(folder, progress.step if of_run else progress.step - 1):
            log.warning("resuming before %s, which is kept as %s", path.name.split("-", 1)[1], path.name)
    step_folders.point_best(folder, progress.best_step)
    if not (folder / "config.yaml").is_file():
        forget_identity(folder)


def write_config(folder: Path, progress: Progress, config: RunConfig) -> None:
    """Write the configuration that the run trains with from here on into its folder.

    A run that begins from another run's checkpoint has adopted it by then, so `--resume auto` finds both.
    """
    written, text = folder / "config.yaml", dump(config)
    before = written.read_text(encoding="utf-8") if written.is_file() else None
    if before is None or (progress.step < config.trainer.steps and before != text):
        write_whole(written, text)


def resume_from(
    ranks: Ranks,
    folder: Path,
    checkpoint: Path | None,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    config: RunConfig,
    basis: dict[str, Any],
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
        basis: what its evaluations depend on, the same on all ranks.
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
                progress = restore(stored, folder, policy, optimizer, config, basis, balance)
            except CheckpointError as error:
                fault = error
        if not ranks.any(progress is None):
            assert progress is not None
            _check_best(ranks, folder, progress)
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
    folder: Path,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    config: RunConfig,
    basis: dict[str, Any],
    balance: Balance | ScalarisedReward | None = None,
) -> Progress:
    """Load a checkpoint into the policy, the optimizer and the balance; return its progress.

    The state of the balance is dropped if the rewards or the balance have changed, and scores of evaluations
    if their basis has. Of another run's checkpoint, all that belongs to that run alone is dropped.

    Args:
        stored: the checkpoint; None returns the progress of a new run.
        folder: the run's folder.
        policy: the policy to restore.
        optimizer: the optimizer to restore.
        config: the configuration of the run.
        basis: what its evaluations depend on.
        balance: the balance to restore.

    Raises:
        CheckpointError: the checkpoint belongs to another model, LoRA or kind of training, or is damaged.
    """
    metric = config.trainer.best
    if stored is None:
        return replace(initial_progress(policy), best_metric=metric, basis=basis)
    checkpoint, state, rewards = stored.path, stored.state, stored.rewards
    check_provenance(read_provenance(state.info, state.train), policy.provenance(), str(checkpoint))
    progress = unpack(policy, optimizer, state, stored.weights, stored.ema)
    log.info("continuing after step %d from %s", progress.step, checkpoint)
    if progress.step >= config.trainer.steps:
        log.warning("step %d of trainer.steps=%d is done already", progress.step, config.trainer.steps)
    now, names = as_tree(config), list(by_aspect(config.rewards))
    if rewards is not None and rewards != names:
        log.warning("%s was trained on %s; the balance starts anew", checkpoint, ", ".join(rewards))
        return Progress(
            progress.step,
            DirectionCache(),
            progress.ema,
            {},
            best_metric=metric,
            basis=basis,
            merged=progress.merged,
        )
    if stored.balance != balance_settings(now):
        reason = "was trained with another balance" if stored.balance else "has no config.yaml of its run"
        log.warning("%s %s; this run's balance starts anew", checkpoint, reason)
        progress.cache, progress.balance = DirectionCache(), None
    elif progress.step:
        restore_balance_state(balance, progress.balance, checkpoint)
    if checkpoint.parent.parent.resolve() == folder.resolve():
        _check_basis(progress, stored, basis)
    else:
        progress.forget_run()
        progress.basis = basis
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


def _check_best(ranks: Ranks, folder: Path, progress: Progress) -> None:
    """Forget the best checkpoint if the main rank's folder of the run holds it no more.

    A run that resumes from before a later best may have deleted the one before.
    """
    best = progress.best_step
    if best is not None and ranks.any(ranks.is_main and not step_folders.place(folder, best).is_dir()):
        log.warning("the best checkpoint, of step %d, is gone; the best is determined anew", best)
        progress.best = progress.best_step = None


def _check_basis(progress: Progress, stored: StoredCheckpoint, basis: dict[str, Any]) -> None:
    """Drop the scores of evaluations if they had another basis; checkpoints of older releases name none.

    Args:
        progress: as restored.
        stored: the run's own checkpoint.
        basis: what the run's evaluations depend on.
    """
    before = progress.basis or {**basis, "images": stored.evaluation or basis["images"]}
    if stored.rewards is not None:  # compared by `find_checkpoint`, which knows paths that have moved
        before = {**before, "rewards": basis["rewards"]}
    changes = describe_changes(before, basis)
    if changes and progress.base_scores:
        log.warning(
            "evaluations of %s %s; base scores and the best are determined anew", stored.path, changes
        )
        progress.base_scores, progress.evaluated = {}, -1
        progress.best = progress.best_step = None
    progress.basis = basis
