"""What is checked within seconds of a run's start, before anything long begins."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from marble_cli.config.schema import Parallel, RewardConfig, RunConfig
from marble_cli.data.prompts import Prompt
from marble_cli.errors import ConfigError, RewardError
from marble_cli.files import check_writable
from marble_cli.policy.load import pick_device
from marble_cli.rewards.api import Declaration
from marble_cli.rewards.applicability import metadata_problem
from marble_cli.rewards.elsewhere.locate import declare
from marble_cli.rewards.scorer import Scorer
from marble_cli.rewards.worker import concerns, required
from marble_cli.rollout.collect import Rollout
from marble_cli.seeds import noise

log = logging.getLogger("marble.run")


def check_plugins(config: RunConfig) -> dict[str, Declaration]:
    """Every reward's plugin can be imported and takes the options that it is given, here or where it is isolated; every
    server serves what is asked of it.

    Returns:
        What each reward declares.

    Raises:
        ConfigError: an option is unknown or missing, or a server or isolated environment is not what is needed.
        RewardError: a plugin cannot be imported, or a server not be reached.
    """
    rewards = {**config.rewards, **config.eval_rewards}
    return {name: declare(name, reward) for name, reward in rewards.items()}


def check_geometry(config: RunConfig, world: int) -> None:
    """Every rank gets the same number of whole groups, and every replica of a sharded model the same number of ranks.

    Raises:
        ConfigError: the number of processes does not divide rollout.groups, or trainer.fsdp.replicas does not divide it.
    """
    if config.rollout.groups % world:
        raise ConfigError(
            f"rollout.groups={config.rollout.groups} is not a multiple of the {world} processes. "
            f"Expected a multiple, e.g. rollout.groups={world * max(1, config.rollout.groups // world)}."
        )
    trainer = config.trainer
    if trainer.parallel is Parallel.fsdp and world % trainer.fsdp.replicas:
        raise ConfigError(
            f"trainer.fsdp.replicas={trainer.fsdp.replicas}: {world} processes cannot be shared evenly among them. "
            f"Expected a divisor of {world}."
        )


def own_device(config: RunConfig, world: int) -> torch.device:
    """The device of this process, which is the current one where it is a GPU.

    Raises:
        RequestError: there is no such device.
        ConfigError: all processes are told to use the same GPU.
    """
    device = pick_device(config.model.device)
    if world > 1 and ":" in config.model.device:
        raise ConfigError(
            f"model.device={config.model.device}: {world} processes cannot all use one. Expected auto, cuda or cpu."
        )
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def check_cache(config: RunConfig) -> None:
    """The embedding cache is a folder, which may be read-only while nothing is missing there, or can be made.

    Raises:
        RequestError: it is neither.
    """
    cache = config.model.embedding_cache
    if cache is not None and not (folder := Path(cache)).is_dir():
        check_writable(folder, "model.embedding_cache=")


def applicable(
    reward: RewardConfig, declaration: Declaration, prompts: Mapping[str, list[Prompt]]
) -> dict[str, int]:
    """How many prompts of each source `reward` is asked about."""
    keys = required(reward, declaration)
    return {
        name: sum(concerns(reward, keys, prompt.metadata, name) for prompt in rows)
        for name, rows in prompts.items()
    }


def trained_on(config: RunConfig, prompts: Mapping[str, list[Prompt]]) -> dict[str, list[Prompt]]:
    """The sources that a step draws from."""
    return {name: rows for name, rows in prompts.items() if config.data.sources[name].weight > 0}


def check_applicable(
    config: RunConfig,
    declarations: Mapping[str, Declaration],
    train: Mapping[str, list[Prompt]],
    held_out: Mapping[str, list[Prompt]],
) -> None:
    """Every trained reward applies to some prompt that is trained on, every watched one to some held-out prompt.

    Raises:
        ConfigError: one never can; the message names the metadata that it requires and the sources that lack it.
    """
    for group, rewards, prompts in (
        ("rewards", config.rewards, trained_on(config, train)),
        ("eval_rewards", config.eval_rewards, held_out),
    ):
        for name, reward in rewards.items():
            if not sum(applicable(reward, declarations[name], prompts).values()):
                raise ConfigError(_never(f"{group}.{name}", reward, declarations[name], prompts))
    for name, reward in config.rewards.items():
        if config.trainer.eval_every and not sum(applicable(reward, declarations[name], held_out).values()):
            log.warning("reward %s applies to no held-out prompt, so evaluations leave it out", name)


def _never(
    path: str, reward: RewardConfig, declaration: Declaration, prompts: Mapping[str, list[Prompt]]
) -> str:
    asked = [name for name in prompts if reward.sources is None or name in reward.sources]
    if not asked:
        return f"{path}.sources={reward.sources}: none of them has a weight. Expected one of: {', '.join(prompts)}."
    keys = " and ".join(map(repr, required(reward, declaration)))
    return (
        f"{path} applies to no prompt: it requires the metadata {keys}, which no prompt of the sources "
        f"{', '.join(asked)} has. Write it into the prompt files, give it with data.sources.<name>.quoted_as or .metadata, "
        f"or leave the reward out: ~{path}"
    )


def check_rewards(rollout: Rollout, scorer: Scorer, sources: Mapping[str, list[Prompt]]) -> None:
    """Two images of a prompt of every source, whose metadata is as rewards require it, through every reward.

    Raises:
        RewardError: a reward failed on all images that it was asked about.
    """
    policy = rollout.policy
    rewards = [lane.reward.declaration for lane in scorer.workers]
    prompts = [_sound(prompts, rewards) for prompts in sources.values() for _ in range(2)]
    latents = noise(rollout.seed, "preflight", 0, list(range(len(prompts))), policy.latent_shape)
    images = policy.decode(latents.to(policy.device))
    scores = scorer.submit(
        images, [p.text for p in prompts], [p.metadata for p in prompts], [p.source for p in prompts]
    ).result()
    for k, lane in enumerate(scorer.workers):
        if scores.failed[k].any() and not scores.applicable[k].any():
            raise RewardError(
                f"reward {lane.name} failed on the first image it was shown, before training began: {lane.error}. "
                f"Run `marble rewards check {lane.name}` to see why."
            )


def _sound(prompts: list[Prompt], rewards: list[Declaration]) -> Prompt:
    """Return the first prompt whose metadata is of the types that rewards require, else the first of all."""
    return next((p for p in prompts if not any(metadata_problem(r, p.metadata) for r in rewards)), prompts[0])


def check_groups(config: RunConfig, declarations: Mapping[str, Declaration]) -> None:
    """Rewards that must see whole prompt groups do.

    Raises:
        ConfigError: a batch of the rollout would cut a group in two.
    """
    rollout = config.rollout
    for name, declaration in declarations.items():
        if declaration.groupwise and rollout.batch_size % rollout.group_size:
            raise ConfigError(
                f"reward {name} judges whole groups, and rollout.batch_size={rollout.batch_size} cuts them. "
                f"Expected a multiple of rollout.group_size={rollout.group_size}."
            )
