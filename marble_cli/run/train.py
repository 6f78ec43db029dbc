"""`marble train`: train a configuration and fill the run's folder."""

import logging
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from marble_cli import lock
from marble_cli.checkpoint.resume import find_checkpoint
from marble_cli.checkpoint.step_folders import remove_leftovers
from marble_cli.config.aspects import reward_keys
from marble_cli.config.enums import Parallel
from marble_cli.config.schema import RunConfig
from marble_cli.distributed.layout import choose_layout
from marble_cli.distributed.ranks import Ranks
from marble_cli.files import RUN_ENTRIES, check_inside, check_writable
from marble_cli.interrupts import Interrupt
from marble_cli.plan.checks import (
    check_cache,
    check_geometry,
    check_packages,
    check_plugins,
    check_trackers,
    own_device,
)
from marble_cli.plan.groups import check_groups
from marble_cli.policy.load import load_policy
from marble_cli.rewards.elsewhere.meeting import meeting
from marble_cli.rewards.scorer import open_scorer
from marble_cli.run.agreement import agree_on_checkpoint, agree_on_config
from marble_cli.run.build import build_balance, build_optimizer, build_trainer
from marble_cli.run.inputs import read_inputs
from marble_cli.run.recorder import RunRecorder
from marble_cli.run.resume import prepare_folder, resume_from
from marble_cli.run.rollback import RollBack, go_back

log = logging.getLogger("marble.run")


def train(config: RunConfig, *, resume: str) -> int:
    """Start or resume a training run; return its exit code: 0, 130 or 143.

    A run that has to go back (`run.rollback`) resumes from its best checkpoint in the same process.

    Raises:
        RequestError: the request cannot be fulfilled.
        RewardError: a reward broke its contract or failed too often; a checkpoint is written first.
    """
    sharded = config.trainer.parallel is Parallel.fsdp
    with Ranks(config.model.device, always=sharded) as ranks, Interrupt() as interrupt, ExitStack() as stack:
        log.disabled = not ranks.is_main  # the other ranks would log the same lines
        config = agree_on_config(ranks, config)
        folder = Path(config.run.dir).absolute()  # a plugin may change the working directory
        rewards, keys = {**config.rewards, **config.eval_rewards}, reward_keys(config)
        run_lock = stack.enter_context(lock.RunLock(folder))
        with ranks.raise_together():
            check_geometry(config.rollout, config.trainer, ranks.world)
            device = own_device(config.model.device, ranks.world)
            if ranks.is_main:
                _check_folder(folder, run_lock)
                check_trackers(config.logging)
            check_packages(config)
            check_cache(config.model)
            declarations = check_plugins(rewards, keys)
            check_groups(config, declarations)
            checkpoint = find_checkpoint(folder, config, resume) if ranks.is_main else None
        named = resume not in ("auto", "never")
        # No rank writes a file before all ranks have passed the checks above.
        checkpoint = agree_on_checkpoint(ranks, folder, checkpoint, named=named)
        layout = choose_layout(config.trainer, ranks, device)
        with ranks.raise_together():
            balance = build_balance(config)
            inputs = read_inputs(config, declarations, device, ranks, resumed=checkpoint is not None)
            if ranks.is_main:
                folder.mkdir(parents=True, exist_ok=True)
                run_lock.acquire()
                remove_leftovers(folder)
        # Shards are gathered in the same order on all ranks only if all compute the same passes.
        checkpointing = replace(inputs.checkpointing, on=ranks.any(inputs.checkpointing.on))
        with ranks.raise_together():
            model = checkpointing.applied(config).model
            policy = load_policy(model, config.trainer.seed, layout.place)
        machine = stack.enter_context(meeting(ranks, rewards, str(policy.device)))
        with ranks.raise_together():
            eval_scorer = stack.enter_context(
                open_scorer(rewards, str(policy.device), config.trainer.pending_batches, machine, keys)
            )
        if inputs.start is not None:
            with ranks.raise_together():
                inputs.start.put_into(policy, config.trainer.seed)
        optimizer = build_optimizer(config, policy)
        while True:
            checkpoint, progress = resume_from(
                ranks, folder, checkpoint, policy, optimizer, config, balance, named=named
            )
            if checkpoint is not None and checkpoint.parent.parent.resolve() != folder.resolve():
                progress.forget_run()
            with ExitStack() as records:
                with ranks.raise_together():
                    if ranks.is_main:
                        prepare_folder(folder, checkpoint, progress, config)
                    recorder = RunRecorder(config, folder, progress, main=ranks.is_main)
                    records.enter_context(recorder)
                if device.type == "cuda":
                    log.info("%s", policy.compilation)
                    log.info("%s", checkpointing)
                trainer = build_trainer(
                    config,
                    folder,
                    policy,
                    optimizer,
                    balance,
                    eval_scorer,
                    inputs.sources,
                    inputs.held_out,
                    layout,
                    recorder,
                    progress,
                )
                interrupt.arm()  # again, because plugins and W&B may have set their own handlers
                try:
                    return trainer.run(interrupt)
                except RollBack as back:
                    checkpoint, named = go_back(ranks, folder, back), True
                    balance = build_balance(config)


def _check_folder(folder: Path, run_lock: lock.RunLock) -> None:
    """Check that the run's folder can be written, and lock it if it exists."""
    check_writable(folder, "run.dir=")
    check_inside(folder, RUN_ENTRIES)
    if folder.is_dir():
        run_lock.acquire()
