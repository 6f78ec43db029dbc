"""`marble train`: from a configuration to a finished run folder."""

import logging
from contextlib import ExitStack
from pathlib import Path

from marble_cli import lock
from marble_cli.checkpoint import store
from marble_cli.checkpoint.resume import find_checkpoint
from marble_cli.config.schema import Parallel, RunConfig
from marble_cli.data.prompts import held_out, load_prompts
from marble_cli.distributed.layout import choose
from marble_cli.distributed.ranks import Ranks
from marble_cli.files import WRITTEN, check_inside, check_writable
from marble_cli.interrupts import Interrupt
from marble_cli.metrics.wandb_destination import destination
from marble_cli.plan.checks import (
    check_applicable,
    check_cache,
    check_geometry,
    check_groups,
    check_plugins,
    own_device,
)
from marble_cli.plan.memory import check_memory
from marble_cli.policy.load import load_policy
from marble_cli.rewards.scorer import open_scorer
from marble_cli.run.agreement import common_checkpoint, common_config
from marble_cli.run.build import build_balance, build_optimizer, build_trainer
from marble_cli.run.recorder import RunRecorder
from marble_cli.run.resume import go_on, prepare

log = logging.getLogger("marble.run")


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
        with ranks.raise_together():
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
        layout = choose(config.trainer, ranks, device)
        with ranks.raise_together():
            sources = load_prompts(config.data, "train")
            kept_back = load_prompts(config.data, "test")
            check_applicable(config, declarations, sources, kept_back)
            prompts = held_out(kept_back, config.trainer.eval_prompts)
            balance = build_balance(config)
            check_memory(config, device)
            if ranks.is_main:
                folder.mkdir(parents=True, exist_ok=True)
                held.take()
                store.remove_leftovers(folder)
            policy = load_policy(config.model, config.trainer.seed, layout.place)
        rewards = {**config.rewards, **config.eval_rewards}
        with ranks.raise_together():
            judges = stack.enter_context(
                open_scorer(rewards, str(policy.device), config.trainer.pending_batches)
            )
        optimizer = build_optimizer(config, policy)
        checkpoint, progress = go_on(
            ranks, folder, checkpoint, policy, optimizer, config, balance, named=named
        )
        if checkpoint is not None and checkpoint.parent.parent.resolve() != folder.resolve():
            progress.wandb_id = None  # a run of its own
        with ranks.raise_together():
            if ranks.is_main:
                prepare(folder, checkpoint, progress, config)
            recorder = stack.enter_context(RunRecorder(config, folder, progress, main=ranks.is_main))
        trainer = build_trainer(
            config, folder, policy, optimizer, balance, judges, sources, prompts, layout, recorder, progress
        )
        interrupt.arm()  # whatever plugins and W&B have set
        return trainer.run(interrupt)
