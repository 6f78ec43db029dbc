"""`marble train`: train a configuration and fill the run's folder."""

import logging
from contextlib import ExitStack
from pathlib import Path

from marble_cli.config.aspects import reward_keys
from marble_cli.config.enums import Parallel
from marble_cli.config.schema import RunConfig
from marble_cli.distributed.ranks import Ranks
from marble_cli.interrupts import Interrupt
from marble_cli.lock import RunLock
from marble_cli.policy.load import load_policy
from marble_cli.policy.pipeline import PipelinePolicy
from marble_cli.rewards.elsewhere.meeting import meeting
from marble_cli.rewards.scorer import Scorer, open_scorer
from marble_cli.run.agreement import agree_on_config
from marble_cli.run.basis import find_basis
from marble_cli.run.begin import Beginning, begin
from marble_cli.run.build import build_balance, build_optimizer, build_trainer
from marble_cli.run.recorder import RunRecorder
from marble_cli.run.resume import prepare_folder, resume_from, write_config
from marble_cli.run.rollback import RollBack, go_back

log = logging.getLogger("marble.run")


def train(config: RunConfig, *, resume: str) -> int:
    """Start or resume a training run; return its exit code: 0, 130 or 143.

    Raises:
        RequestError: the request cannot be fulfilled.
        RewardError: a reward broke its contract or failed too often; a checkpoint is written first.
    """
    sharded = config.trainer.parallel is Parallel.fsdp
    with Ranks(config.model.device, always=sharded) as ranks, Interrupt() as interrupt, ExitStack() as stack:
        log.disabled = not ranks.is_main  # the other ranks would log the same lines
        config = agree_on_config(ranks, config)
        rewards, seed = {**config.rewards, **config.eval_rewards}, config.trainer.seed
        run_lock = stack.enter_context(RunLock(Path(config.run.dir)))
        begun = begin(config, rewards, ranks, run_lock, resume)
        inputs = begun.inputs
        with ranks.raise_together():
            policy = load_policy(inputs.checkpointing.applied(config).model, seed, begun.layout.place)
        machine = stack.enter_context(meeting(ranks, rewards, str(policy.device)))
        with ranks.raise_together():
            pending, keys = config.trainer.pending_batches, reward_keys(config)
            eval_scorer = stack.enter_context(
                open_scorer(rewards, str(policy.device), pending, machine, keys)
            )
        if inputs.start is not None:
            with ranks.raise_together():
                inputs.start.put_into(policy, seed)
        return _train(config, begun, policy, eval_scorer, run_lock.folder, interrupt)


def _train(
    config: RunConfig,
    begun: Beginning,
    policy: PipelinePolicy,
    eval_scorer: Scorer,
    folder: Path,
    interrupt: Interrupt,
) -> int:
    """Train from the checkpoint on; a run that goes back (`run.rollback`) resumes from its best one."""
    ranks, inputs = begun.layout.ranks, begun.inputs
    checkpoint, named, balance = begun.checkpoint, begun.named, begun.balance
    optimizer = build_optimizer(config, policy)
    with ranks.raise_together():
        basis = find_basis(config, inputs.held_out) if ranks.is_main else None
    basis = ranks.broadcast_json(basis)
    while True:
        checkpoint, progress = resume_from(
            ranks, folder, checkpoint, policy, optimizer, config, basis, balance, named=named
        )
        with ExitStack() as records:
            with ranks.raise_together():
                if ranks.is_main:
                    prepare_folder(folder, checkpoint, progress)
                recorder = RunRecorder(config, folder, progress, main=ranks.is_main)
                records.enter_context(recorder)
            if policy.device.type == "cuda":
                log.info("%s", policy.compilation)
                log.info("%s", inputs.checkpointing)
            trainer = build_trainer(
                config,
                folder,
                policy,
                optimizer,
                balance,
                eval_scorer,
                inputs.sources,
                inputs.held_out,
                begun.layout,
                recorder,
                progress,
            )
            if checkpoint is not None:
                trainer.checkpoints.adopt()
            with ranks.raise_together():
                if ranks.is_main:
                    write_config(folder, progress, config)
            interrupt.arm()  # again, because plugins and W&B may have set their own handlers
            try:
                return trainer.run(interrupt)
            except RollBack as back:
                checkpoint, named = go_back(ranks, folder, back), True
                balance = build_balance(config)
