"""Check a run within seconds of its start, before anything long begins."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from marble_cli.config.aspects import by_aspect, key_of
from marble_cli.config.conditions import parse_condition
from marble_cli.config.enums import KlGate, OptimizerName, Parallel
from marble_cli.config.schema import (
    LoggingConfig,
    ModelConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
    SourceConfig,
)
from marble_cli.config.trainer import TrainerConfig
from marble_cli.data.prompts import Prompt
from marble_cli.errors import ConfigError, RequestError, RewardError
from marble_cli.files import check_writable
from marble_cli.metrics.tracker import load_tracker
from marble_cli.metrics.wandb_destination import WandbDestination, resolve_destination
from marble_cli.optional import require
from marble_cli.policy.load import pick_device
from marble_cli.policy.quantization import check_quantization
from marble_cli.rewards.api import Declaration
from marble_cli.rewards.applicability import metadata_problem
from marble_cli.rewards.aspects import require_choice
from marble_cli.rewards.elsewhere.locate import declare
from marble_cli.rewards.scorer import Scorer
from marble_cli.rewards.worker import concerns, required
from marble_cli.rollout.collect import Rollout, submit
from marble_cli.seeds import noise

log = logging.getLogger("marble.run")


def check_plugins(rewards: Mapping[str, RewardConfig], keys: Mapping[str, str]) -> dict[str, Declaration]:
    """Check that every reward can be made with its options, in this process, its environment or its server.

    Args:
        rewards: settings by name.
        keys: their dotted keys.

    Returns:
        The declaration of each reward, by name.

    Raises:
        ConfigError: an option is unknown or missing, or a server or isolated environment does not fit its
            reward.
        RewardError: a plugin cannot be imported, or a server cannot be reached.
    """
    declarations = {name: declare(name, reward, keys[name]) for name, reward in rewards.items()}
    for name, reward in rewards.items():
        require_choice(keys[name], reward, declarations[name])
    return declarations


def with_declarations(
    rewards: Mapping[str, RewardConfig], declarations: Mapping[str, Declaration]
) -> Iterator[tuple[str, RewardConfig, Declaration]]:
    """Yield every reward that has scores of its own: its name, its settings and its declaration.

    Args:
        rewards: settings as the configuration has them.
        declarations: of these rewards, by the names that the configuration has.
    """
    for name, reward in rewards.items():
        for own, settings in by_aspect({name: reward}).items():
            yield own, settings, declarations[name]


def check_trackers(logging: LoggingConfig) -> WandbDestination | None:
    """Check that every tracker can be imported; return where W&B's metrics go, None without W&B.

    Raises:
        ConfigError: a tracker is unknown or cannot be imported, or W&B's own settings are wrong.
    """
    for name in logging.trackers:
        load_tracker(name)
    return resolve_destination(logging.wandb) if "wandb" in logging.trackers else None


def check_packages(config: RunConfig) -> None:
    """Check that the optional packages of the configuration's choices are installed.

    Raises:
        RequestError: one is not; the message says how to install it.
    """
    if config.optimizer.name is OptimizerName.adamw8bit:
        require("bitsandbytes", "optimizer=adamw8bit")
    check_quantization(config.model.quantization)


def check_geometry(rollout: RolloutConfig, trainer: TrainerConfig, world: int) -> None:
    """Check that there is an image for each rank, and that each replica of the model has as many ranks.

    Raises:
        ConfigError: there are more processes than images in a step, or trainer.fsdp.replicas does not divide
            the number of processes.
    """
    images = rollout.groups * rollout.group_size
    if world > images:
        raise ConfigError(
            f"{world} processes cannot share the {images} images of a step, rollout.groups={rollout.groups} "
            f"x rollout.group_size={rollout.group_size}. Expected at most {images} processes, or more images."
        )
    if trainer.parallel is Parallel.fsdp and world % trainer.fsdp.replicas:
        raise ConfigError(
            f"trainer.fsdp.replicas={trainer.fsdp.replicas}: {world} processes cannot be divided evenly "
            f"among these replicas. Expected a divisor of {world}."
        )


def own_device(name: str, world: int) -> torch.device:
    """Pick this process's device by `model.device`. A GPU becomes torch's current one.

    Raises:
        RequestError: there is no such device.
        ConfigError: model.device names one GPU for several processes.
    """
    device = pick_device(name)
    if world > 1 and ":" in name:
        raise ConfigError(
            f"model.device={name}: {world} processes cannot all use one device. Expected auto, cuda or cpu."
        )
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def check_cache(model: ModelConfig) -> None:
    """Check that the folder of the embedding cache exists or can be made.

    An existing folder may be read-only, as long as no embedding is missing in it.

    Raises:
        RequestError: the folder can neither be read nor made.
    """
    cache = model.embedding_cache
    if cache is not None and not (folder := Path(cache)).is_dir():
        check_writable(folder, "model.embedding_cache=")


def applicable(
    reward: RewardConfig, declaration: Declaration, prompts: Mapping[str, list[Prompt]]
) -> dict[str, int]:
    """Count the prompts of each source that `reward` scores."""
    keys = required(reward, declaration)
    return {
        name: sum(
            concerns(reward, keys, prompt.metadata, name)
            for prompt in rows
            if declaration.compares(len(prompt.images))
        )
        for name, rows in prompts.items()
    }


def trained_on(
    sources: Mapping[str, SourceConfig], prompts: Mapping[str, list[Prompt]]
) -> dict[str, list[Prompt]]:
    """Return the prompts that training draws from: those of sources with a weight above 0."""
    return {name: rows for name, rows in prompts.items() if sources[name].weight > 0}


def check_applicable(
    config: RunConfig,
    declarations: Mapping[str, Declaration],
    train: Mapping[str, list[Prompt]],
    held_out: Mapping[str, list[Prompt]],
) -> None:
    """Check that each trained reward applies to a training prompt, each watched one to a held-out prompt.

    Raises:
        ConfigError: a reward applies to none, or its `only_if` cannot be met on any; the message names the
            metadata that the reward requires and the sources that lack it, or the other reward.
    """
    both = {**config.rewards, **config.eval_rewards}
    every = {name: (row, declaration) for name, row, declaration in with_declarations(both, declarations)}
    for group, rewards, prompts in (
        ("rewards", config.rewards, trained_on(config.data.sources, train)),
        ("eval_rewards", config.eval_rewards, held_out),
    ):
        for name, reward, declaration in with_declarations(rewards, declarations):
            if declaration.needs_frames and config.model.frames is None:
                raise ConfigError(
                    f"{key_of(group, name)} scores videos, and {config.model.path} draws pictures. Leave the "
                    f"reward out (~{key_of(group, name)}), or train a model of videos (docs/how-to/video.md)."
                )
            if not sum(applicable(reward, declaration, prompts).values()):
                raise ConfigError(_explain_no_prompts(key_of(group, name), reward, declaration, prompts))
        _check_conditions(group, rewards, every, prompts)
    watched = with_declarations(config.eval_rewards, declarations)
    asked = trained_on(config.data.sources, train)
    if config.algorithm.kl_gate is KlGate.watched and not any(
        sum(applicable(reward, declaration, asked).values()) for _, reward, declaration in watched
    ):
        raise ConfigError(
            "algorithm.kl_gate=watched: no reward under eval_rewards applies to a training prompt, so the "
            "gate would never close. Expected one that does, or algorithm.kl_gate=none."
        )
    for name, reward, declaration in with_declarations(config.rewards, declarations):
        if config.trainer.eval_every and not sum(applicable(reward, declaration, held_out).values()):
            log.warning("reward %s applies to no held-out prompt, so evaluations leave it out", name)


def _check_conditions(
    group: str,
    rewards: Mapping[str, RewardConfig],
    every: Mapping[str, tuple[RewardConfig, Declaration]],
    prompts: Mapping[str, list[Prompt]],
) -> None:
    """Check that each `only_if` can be met: some prompt concerns both the reward and those that it names.

    Args:
        group: `rewards` or `eval_rewards`.
        rewards: the settings under `group`.
        every: settings and declaration of all rewards that have scores of their own, by name.
        prompts: those that the rewards of `group` are asked about, by source.
    """
    for name, reward in by_aspect(rewards).items():
        for part in parse_condition(reward.only_if) if reward.only_if is not None else ():
            both = [(row, required(row, declaration)) for row, declaration in (every[name], every[part.name])]
            if not any(
                all(concerns(row, keys, prompt.metadata, source) for row, keys in both)
                for source, rows in prompts.items()
                for prompt in rows
            ):
                raise ConfigError(
                    f"{key_of(group, name)}.only_if={reward.only_if!r}: no prompt concerns both this reward "
                    f"and {part.name}, so it never applies. Expected a reward that scores the same prompts."
                )


def _explain_no_prompts(
    path: str, reward: RewardConfig, declaration: Declaration, prompts: Mapping[str, list[Prompt]]
) -> str:
    names = [name for name in prompts if reward.sources is None or name in reward.sources]
    if not names:
        known = ", ".join(prompts)
        return f"{path}.sources={reward.sources}: none of them has a weight. Expected one of: {known}."
    counts = {len(prompt.images) for name in names for prompt in prompts[name]}
    if declaration.takes_conditions and min(counts, default=0) > 1 and not declaration.takes_references:
        return (
            f"{path} applies to no prompt: it compares an image with one picture, its parameter conditions, "
            f"and every prompt of the sources {', '.join(names)} has several. Choose a reward that takes "
            f"references (docs/how-to/image-editing.md), or leave it out: ~{path}"
        )
    if declaration.needs_conditions and not any(counts):
        return (
            f"{path} applies to no prompt: it compares an image with the picture it was edited from, and no "
            f"prompt of the sources {', '.join(names)} names one. Train a model that starts from pictures "
            f"(docs/how-to/image-editing.md), or leave the reward out: ~{path}"
        )
    keys = " and ".join(map(repr, required(reward, declaration)))
    return (
        f"{path} applies to no prompt: it requires the metadata {keys}, which no prompt of the sources "
        f"{', '.join(names)} has. Write it into the prompt files, give it with data.sources.<name>.quoted_as "
        f"or .metadata, or leave the reward out: ~{path}"
    )


def check_rewards(rollout: Rollout, scorer: Scorer, sources: Mapping[str, list[Prompt]]) -> None:
    """Score two random images per source with every reward, before anything long begins.

    The prompt is the source's first one whose metadata has the types that the rewards require.

    Raises:
        RequestError: the VAE makes no picture.
        RewardError: a reward failed on every image that it was asked to score.
    """
    policy = rollout.policy
    rewards = [worker.reward.declaration for worker in scorer.workers]
    prompts = [_first_valid(prompts, rewards) for prompts in sources.values() for _ in range(2)]
    latents = noise(rollout.seed, "preflight", 0, list(range(len(prompts))), policy.latent_shape)
    images, finite = policy.decode(latents.to(policy.device))
    if not finite.any():
        raise RequestError(
            "the model's VAE makes values that are not finite (NaN or infinity) of noise, and no picture. "
            "Expected model.precision=bf16 or fp32 if it is fp16, or other weights in model.path."
        )
    scores = submit(scorer, prompts, images, finite).unconditional()
    for name, failed, applicable in zip(scores.names, scores.failed, scores.applicable, strict=True):
        if failed.any() and not applicable.any():
            worker = scorer.worker(name)
            raise RewardError(
                f"reward {name} failed on the first image it was shown, before training began: "
                f"{worker.errors[name]}. To see why, run `marble rewards check {worker.name}` with the "
                f"overrides of {worker.key}."
            )


def _first_valid(prompts: list[Prompt], rewards: list[Declaration]) -> Prompt:
    """Return the first prompt whose metadata has the types that rewards require, else the first prompt."""
    return next((p for p in prompts if not any(metadata_problem(r, p.metadata) for r in rewards)), prompts[0])
