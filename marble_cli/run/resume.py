"""Put a run's folder, policy, optimizer and balance back to where a checkpoint has them."""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import OmegaConf

from marble_cli.balance.base import Balance
from marble_cli.balance.cache import DirectionCache
from marble_cli.balance.constant import ScalarisedReward
from marble_cli.checkpoint import store
from marble_cli.checkpoint.manifest import REMEDY
from marble_cli.checkpoint.resume import newest_checkpoint, warn_skipped
from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig
from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import CheckpointError
from marble_cli.files import write_whole
from marble_cli.metrics.wandb_history import forget
from marble_cli.policy.base import Policy
from marble_cli.policy.provenance import check_provenance, read_provenance
from marble_cli.run.agreement import Stored, common_checkpoint, judged_by, read
from marble_cli.run.balance_state import recall
from marble_cli.run.state import Progress, fresh, unpack

log = logging.getLogger("marble.run")


def prepare(folder: Path, checkpoint: Path | None, progress: Progress, config: RunConfig) -> None:
    """Leave the run's folder as it was when `checkpoint` was written, and the configuration in it."""
    for path in store.set_aside(folder, progress.step) if checkpoint else ():
        log.warning("going back before %s, which is kept as %s", path.name.split("-", 1)[1], path.name)
    store.point_best(folder, progress.best_step)
    if not (folder / "config.yaml").is_file():
        forget(folder)
    if checkpoint is None or not (folder / "config.yaml").is_file():
        write_whole(folder / "config.yaml", dump(config))


def go_on(
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
    """Return the checkpoint and its progress, or an older one's where it does not fit the run and was not `named`.

    The policy, the optimizer and the balance are then as the checkpoint has them.

    Raises:
        CheckpointError: it does not fit, and was named or is the last.
    """
    while True:
        stored = None if checkpoint is None else read(ranks, checkpoint)
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
                fault = fault or CheckpointError(f"{checkpoint} fits here, and not on another node.")
                older = None if named else newest_checkpoint(folder, store.step_of(checkpoint))
                if older is None:
                    raise fault
                warn_skipped(checkpoint, str(fault))
        checkpoint = common_checkpoint(ranks, folder, older, named=True)


def restore(
    stored: Stored | None,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    config: RunConfig,
    balance: Balance | ScalarisedReward | None = None,
) -> Progress:
    """Put what a checkpoint holds into the policy, the optimizer and the balance; return its progress, or a fresh one.

    What a run on other rewards, or one with another balance, knew of its rewards is of no use here and stays behind.

    Raises:
        CheckpointError: it is of another model, LoRA or kind of training, or holds what cannot be.
    """
    metric = config.trainer.best
    if stored is None:
        return replace(fresh(policy), best_metric=metric)
    checkpoint, state, rewards = stored.path, stored.state, stored.rewards
    check_provenance(read_provenance(state.info, state.train), policy.provenance(), str(checkpoint))
    progress = unpack(policy, optimizer, state, stored.weights, stored.ema)
    log.info("continuing after step %d from %s", progress.step, checkpoint)
    if progress.step >= config.trainer.steps:
        log.warning("step %d of trainer.steps=%d is done already", progress.step, config.trainer.steps)
    now = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(now, dict)
    if rewards is not None and rewards != list(config.rewards):
        log.warning("%s was trained on %s; the balance starts afresh", checkpoint, ", ".join(rewards))
        return Progress(progress.step, DirectionCache(), progress.ema, {}, best_metric=metric)
    if stored.balance not in (None, now["balance"]):
        log.warning("%s was trained with another balance; ours starts afresh", checkpoint)
        progress.cache, progress.balance = DirectionCache(), None
    elif progress.step:
        recall(balance, progress.balance, checkpoint)
    if stored.judged not in (None, judged_by(now)):
        log.warning("evaluations of %s drew otherwise; the start and the best are sought anew", checkpoint)
        progress = replace(progress, base_scores={}, best=None, best_step=None, evaluated=-1)
    if progress.cache.alpha is not None and len(progress.cache.alpha) != len(config.rewards):
        raise CheckpointError(
            f"{checkpoint} is damaged: its balance has shares of {len(progress.cache.alpha)} rewards, and the run has "
            f"{len(config.rewards)}. {REMEDY}"
        )
    if progress.best_metric != metric:
        log.warning(
            "the best was sought in %s so far, and is sought anew in %s", progress.best_metric, metric
        )
        progress.best, progress.best_step, progress.best_metric = None, None, metric
    return progress
