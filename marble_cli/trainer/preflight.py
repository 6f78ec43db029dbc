"""What is checked within seconds of a run's start, before anything long begins."""

from collections.abc import Mapping

from marble_cli.config.schema import RunConfig
from marble_cli.data.prompts import Prompt
from marble_cli.errors import ConfigError, RewardError
from marble_cli.randomness import noise
from marble_cli.rewards.api import Declaration
from marble_cli.rewards.scorer import Scorer
from marble_cli.rewards.source import declare
from marble_cli.rollout.collect import Rollout


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
    """Every rank gets the same number of whole groups.

    Raises:
        ConfigError: rollout.groups is not a multiple of the number of processes.
    """
    if config.rollout.groups % world:
        raise ConfigError(
            f"rollout.groups={config.rollout.groups} is not a multiple of the {world} processes. "
            f"Expected a multiple, e.g. rollout.groups={world * max(1, config.rollout.groups // world)}."
        )


def check_rewards(rollout: Rollout, scorer: Scorer, sources: Mapping[str, list[Prompt]]) -> None:
    """Two images of a prompt of every source through every reward.

    Raises:
        RewardError: a reward failed on all images that it was asked about.
    """
    policy = rollout.policy
    prompts = [prompts[0] for prompts in sources.values() for _ in range(2)]
    latents = noise(rollout.seed, "preflight", 0, list(range(len(prompts))), policy.latent_shape)
    images = policy.decode(latents.to(policy.device))
    scores = scorer.submit(
        images, [p.text for p in prompts], [p.metadata for p in prompts], [p.source for p in prompts]
    ).result()
    for k, lane in enumerate(scorer.lanes):
        if scores.failed[k].any() and not scores.applicable[k].any():
            raise RewardError(
                f"reward {lane.name} failed on the first image it was shown, before training began: {lane.error}. "
                f"Run `marble rewards check {lane.name}` to see why."
            )


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
