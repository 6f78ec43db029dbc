"""Build a trainer and its parts from a configuration, for runs, benches, scripts and tests."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from marble_cli.balance import registry
from marble_cli.balance.base import Balance
from marble_cli.balance.constant import ScalarisedReward
from marble_cli.config.aspects import by_aspect
from marble_cli.config.enums import KlReference, OptimizerName, Role
from marble_cli.config.schema import RunConfig
from marble_cli.config.scored import scored_rewards
from marble_cli.data.prompts import Prompt
from marble_cli.data.schedule import PromptSampler
from marble_cli.distributed.layout import Layout
from marble_cli.evaluate.score import make_evaluator
from marble_cli.optional import require
from marble_cli.policy.base import Policy
from marble_cli.rewards.scorer import Scorer
from marble_cli.rollout.collect import Rollout
from marble_cli.run.evaluations import Evaluations
from marble_cli.run.gate import make_gate
from marble_cli.run.loop import Recorder, Trainer
from marble_cli.run.rollback import in_force
from marble_cli.run.state import Progress
from marble_cli.step.direction import make_descent


def build_optimizer(config: RunConfig, policy: Policy) -> torch.optim.Optimizer:
    """Return the optimizer of the trained parameters.

    Raises:
        RequestError: it needs a package that is not installed.
    """
    settings = config.optimizer
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    if settings.name is OptimizerName.adamw8bit:
        optimizer = require("bitsandbytes", "optimizer=adamw8bit").optim.AdamW8bit
    return optimizer(
        list(policy.parameters("trained").values()),
        lr=settings.lr,
        betas=(settings.betas[0], settings.betas[1]),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )


def build_balance(config: RunConfig) -> Balance | ScalarisedReward:
    """Return the balance of the run's rewards.

    Raises:
        ConfigError: the balance is unknown, or its settings do not fit the rewards.
    """
    return registry.build_for(config.balance, config.rewards)


def build_sampler(config: RunConfig, sources: Mapping[str, list[Prompt]]) -> PromptSampler:
    """Return the sampler that draws the prompts of each step from the training prompts of every source."""
    shares = {name: config.data.sources[name].weight for name in sources}
    return PromptSampler(sources, shares, config.rollout.groups, config.trainer.seed)


def build_trainer(
    config: RunConfig,
    folder: Path,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    balance: Balance | ScalarisedReward,
    eval_scorer: Scorer,
    sources: Mapping[str, list[Prompt]],
    held_out: list[Prompt],
    layout: Layout,
    recorder: Recorder,
    progress: Progress,
) -> Trainer:
    """Return a trainer that continues after `progress`.

    Args:
        config: the configuration of the run.
        folder: the run's folder.
        policy: the policy with the weights of `progress`.
        optimizer: the optimizer of its trained parameters.
        balance: the balance of the trained rewards.
        eval_scorer: scores the trained and the watched rewards.
        sources: the training prompts by source.
        held_out: the prompts of evaluations.
        layout: how ranks hold parameters.
        recorder: records metrics and pictures.
        progress: the state after the last finished step.
    """
    config = in_force(config, progress)
    rewards = by_aspect(config.rewards)
    names = list(rewards)
    guards = [name for name, reward in rewards.items() if reward.role is Role.guard]
    evaluations = Evaluations(
        settings=config.trainer,
        policy=policy,
        evaluator=make_evaluator(config, policy, eval_scorer, held_out, layout),
        trained=[name for name in names if name not in guards],
        guards=guards,
        watched=list(by_aspect(config.eval_rewards)),
        kl_coef=config.algorithm.kl_coef,
        progress=progress,
    )
    needs_negatives = config.algorithm.kl_reference is KlReference.guided
    return Trainer(
        config=config,
        folder=folder,
        policy=policy,
        optimizer=optimizer,
        scorer=eval_scorer.only(list(by_aspect(scored_rewards(config)))),
        gate=make_gate(config),
        sampler=build_sampler(config, sources),
        rollout=Rollout(policy, config.rollout, config.trainer.seed, negatives=needs_negatives),
        evaluations=evaluations,
        descent=make_descent(config, names, policy, balance, layout),
        layout=layout,
        recorder=recorder,
        progress=progress,
    )
