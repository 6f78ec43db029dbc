"""Tell which rewards score the images of every step."""

from marble_cli.config.enums import KlGate
from marble_cli.config.schema import RewardConfig, RunConfig


def scored_rewards(config: RunConfig) -> dict[str, RewardConfig]:
    """Return the rewards that score the images of every step: with a KL gate, the watched ones too."""
    watched = config.eval_rewards if config.algorithm.kl_gate is KlGate.watched else {}
    return {**config.rewards, **watched}
