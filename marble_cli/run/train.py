"""`marble train`: from a configuration to a finished run folder."""

import logging
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import OmegaConf

from marble_cli import lock
from marble_cli.balance.base import Balance
from marble_cli.balance.cache import DirectionCache
from marble_cli.balance.constant import ScalarisedReward
from marble_cli.balance.registry import build as build_balance
from marble_cli.checkpoint import store
from marble_cli.checkpoint.manifest import REMEDY
from marble_cli.checkpoint.resume import find_checkpoint, newest, passed_over
from marble_cli.config.compose import dump
from marble_cli.config.schema import Parallel, RunConfig
from marble_cli.data.prompts import held_out, load_prompts
from marble_cli.data.schedule import PromptSampler
from marble_cli.distributed.layout import choose
from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import CheckpointError
from marble_cli.files import WRITTEN, check_inside, check_writable, write_whole
from marble_cli.interrupts import Interrupt
from marble_cli.metrics.wandb_destination import destination
from marble_cli.metrics.wandb_history import forget
from marble_cli.plan.checks import (
    check_applicable,
    check_cache,
    check_geometry,
    check_groups,
    check_plugins,
    own_device,
)
from marble_cli.plan.memory import check_memory
from marble_cli.policy.base import Policy
from marble_cli.policy.load import load_policy
from marble_cli.policy.provenance import check_origin, read_origin
from marble_cli.rewards.scorer import open_scorer
from marble_cli.rollout.collect import evaluation_rollout, training_rollout
from marble_cli.run.agreement import Stored, common_checkpoint, common_config, judged_by, read
from marble_cli.run.balance_state import recall
from marble_cli.run.loop import Trainer
from marble_cli.run.recorder import RunRecorder
from marble_cli.run.state import Progress, fresh, unpack
from marble_cli.step.direction import make_descent

log = logging.getLogger("marble.run")


def build_optimizer(config: RunConfig, policy: Policy) -> torch.optim.Optimizer:
    settings = config.optimizer
    return torch.optim.AdamW(
        list(policy.parameters("trained").values()),
        lr=settings.lr,
        betas=(settings.betas[0], settings.betas[1]),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )


def train(config: RunConfig, *, resume: str) -> int:
    """Run or continue a training; returns the exit code of the contract (0, 130 or 143).

    Raises:
        RequestError: something that was asked for cannot be.
        RewardError: a reward broke its contract or failed too often; a checkpoint is written first.
    """
    sharded = config.trainer.parallel is Parallel.fsdp
    with Ranks(config.model.device, always=sharded) as ranks, Interrupt() as interrupt, ExitStack() as stack:
        log.disabled = not ranks.is_main  # of what every rank would say alike
        config = common_config(ranks, config)
        folder = Path(config.run.dir).absolute()  # wherever a plugin may go
        held = stack.enter_context(lock.RunLock(folder))
        checkpoint = None
        with ranks.agreed():
            check_geometry(config, ranks.world)
            device = own_device(config, ranks.world)
            if ranks.is_main:
                check_writable(folder, "run.dir=")
                check_inside(folder, WRITTEN)
                if folder.is_dir():
                    held.take()
                destination(config.logging.wandb)
            check_cache(config)
            declarations = check_plugins(config)
            check_groups(config, declarations)
            if ranks.is_main:
                checkpoint = find_checkpoint(folder, config, resume)
        named = resume not in ("auto", "never")
        # All have looked before one writes.
        checkpoint = common_checkpoint(ranks, folder, checkpoint, named=named)
        names = list(config.rewards)
        layout = choose(config.trainer, ranks, device)
        with ranks.agreed():
            sources = load_prompts(config.data, "train")
            kept_back = load_prompts(config.data, "test")
            check_applicable(config, declarations, sources, kept_back)
            prompts = held_out(kept_back, config.trainer.eval_prompts)
            weights = [reward.weight for reward in config.rewards.values()]
            balance = build_balance(config.balance, names, weights)
            check_memory(config, device)
            if ranks.is_main:
                folder.mkdir(parents=True, exist_ok=True)
                held.take()
                store.sweep(folder)
            policy = load_policy(config.model, config.trainer.seed, layout.place)
        rewards = {**config.rewards, **config.eval_rewards}
        with ranks.agreed():
            judges = stack.enter_context(
                open_scorer(rewards, str(policy.device), config.trainer.pending_batches)
            )
        optimizer = build_optimizer(config, policy)
        checkpoint, progress = go_on(
            ranks, folder, checkpoint, policy, optimizer, config, balance, named=named
        )
        if checkpoint is not None and checkpoint.parent.parent.resolve() != folder.resolve():
            progress.wandb_id = None  # a run of its own
        with ranks.agreed():
            if ranks.is_main:
                prepare(folder, checkpoint, progress, config)
            recorder = stack.enter_context(RunRecorder(config, folder, progress, main=ranks.is_main))
        shares = {name: config.data.sources[name].weight for name in sources}
        sampler = PromptSampler(sources, shares, config.rollout.groups, config.trainer.seed)
        trainer = Trainer(
            config, folder, policy, optimizer, judges.only(names), judges, sampler, prompts,
            training_rollout(config, policy), evaluation_rollout(config, policy),
            make_descent(config, names, policy, balance, layout), layout, recorder, progress,
        )  # fmt: skip
        interrupt.arm()  # whatever plugins and W&B have set
        return trainer.run(interrupt)


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
    """The checkpoint and its progress, or an older one's where it does not fit the run and was not `named`.

    The policy, the optimizer and the balance are then as the checkpoint has them.

    Raises:
        CheckpointError: it does not fit, and was named or is the last.
    """
    while True:
        stored = None if checkpoint is None else read(ranks, checkpoint)
        fault, progress = None, None
        with ranks.agreed():
            try:
                progress = restore(stored, policy, optimizer, config, balance)
            except CheckpointError as error:
                fault = error
        if not ranks.any(progress is None):
            assert progress is not None
            return checkpoint, progress
        older = None
        with ranks.agreed():
            if checkpoint is not None and ranks.is_main:
                fault = fault or CheckpointError(f"{checkpoint} fits here, and not on another node.")
                older = None if named else newest(folder, store.step_of(checkpoint))
                if older is None:
                    raise fault
                passed_over(checkpoint, str(fault))
        checkpoint = common_checkpoint(ranks, folder, older, named=True)


def restore(
    stored: Stored | None,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    config: RunConfig,
    balance: Balance | ScalarisedReward | None = None,
) -> Progress:
    """The progress that a checkpoint holds, put into the policy, the optimizer and the balance; a fresh one without.

    What a run on other rewards, or one with another balance, knew of its rewards is of no use here and stays behind.

    Raises:
        CheckpointError: it is of another model, LoRA or kind of training, or holds what cannot be.
    """
    metric = config.trainer.best
    if stored is None:
        return replace(fresh(policy), best_metric=metric)
    checkpoint, state, rewards = stored.path, stored.state, stored.rewards
    check_origin(read_origin(state.info, state.train), policy.origin(), str(checkpoint))
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
