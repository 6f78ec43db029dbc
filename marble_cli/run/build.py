"""Build a trainer from a configuration and what is loaded: the one way to one, for runs, benches, scripts and tests."""

from collections.abc import Mapping
from pathlib import Path

import torch

from marble_cli.balance import registry
from marble_cli.balance.base import Balance
from marble_cli.balance.constant import ScalarisedReward
from marble_cli.config.schema import RunConfig
from marble_cli.data.prompts import Prompt
from marble_cli.data.schedule import PromptSampler
from marble_cli.distributed.layout import Layout
from marble_cli.policy.base import Policy
from marble_cli.rewards.scorer import Scorer
from marble_cli.rollout.collect import Rollout, evaluation_settings
from marble_cli.run.loop import Recorder, Trainer
from marble_cli.run.state import Progress
from marble_cli.step.direction import make_descent


def build_optimizer(config: RunConfig, policy: Policy) -> torch.optim.Optimizer:
    """Return AdamW over the trained parameters."""
    settings = config.optimizer
    return torch.optim.AdamW(
        list(policy.parameters("trained").values()),
        lr=settings.lr,
        betas=(settings.betas[0], settings.betas[1]),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )


def build_balance(config: RunConfig) -> Balance | ScalarisedReward:
    """Return the balance of the run's rewards.

    Raises:
        ConfigError: there is no such balance, or its settings do not fit the rewards.
    """
    weights = [reward.weight for reward in config.rewards.values()]
    return registry.build(config.balance, list(config.rewards), weights)


def build_sampler(config: RunConfig, sources: Mapping[str, list[Prompt]]) -> PromptSampler:
    """Return what draws each step's prompts from the training prompts by source."""
    shares = {name: config.data.sources[name].weight for name in sources}
    return PromptSampler(sources, shares, config.rollout.groups, config.trainer.seed)


def build_trainer(
    config: RunConfig,
    folder: Path,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    balance: Balance | ScalarisedReward,
    judges: Scorer,
    sources: Mapping[str, list[Prompt]],
    held_out: list[Prompt],
    layout: Layout,
    recorder: Recorder,
    progress: Progress,
) -> Trainer:
    """Return a trainer that goes on from `progress`.

    Args:
        config: of the run.
        folder: of the run.
        policy: with the weights of `progress`.
        optimizer: over its trained parameters.
        balance: of the trained rewards.
        judges: scores the trained and the watched rewards.
        sources: training prompts by source.
        held_out: prompts of evaluations.
        layout: how ranks hold parameters.
        recorder: where figures and pictures go.
        progress: the last finished step.
    """
    names = list(config.rewards)
    rollout = Rollout(policy, config.rollout, config.trainer.seed)
    evaluation = Rollout(policy, evaluation_settings(config.rollout, config.evaluation), config.trainer.seed)
    return Trainer(
        config, folder, policy, optimizer, judges.only(names), judges, build_sampler(config, sources), held_out,
        rollout, evaluation,
        make_descent(config, names, policy, balance, layout), layout, recorder, progress,
    )  # fmt: skip
