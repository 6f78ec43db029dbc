"""Keep prompt groups whole for rewards that compare the images of a prompt."""

from collections.abc import Iterable, Mapping

from marble_cli.config.counts import processes
from marble_cli.config.evaluation import resolve_evaluation
from marble_cli.config.schema import RolloutConfig, RunConfig
from marble_cli.config.scored import scored_rewards
from marble_cli.errors import ConfigError
from marble_cli.evaluate.groups import check_evaluated_groups
from marble_cli.rewards.api import Declaration


def images_together(rollout: RolloutConfig, scored: Iterable[Declaration]) -> int:
    """Return how many neighbouring images one process draws: a prompt's if a reward compares them, else 1."""
    return rollout.group_size if any(declaration.groupwise for declaration in scored) else 1


def check_groups(config: RunConfig, declarations: Mapping[str, Declaration]) -> None:
    """Check that rewards which judge whole prompt groups get whole groups, in rollouts and in evaluations.

    Raises:
        ConfigError: a batch of the rollout would cut a group in two, there are more processes than groups, or
            evaluations draw no groups.
    """
    rollout, world = config.rollout, processes(config.launcher)
    for name in scored_rewards(config):
        if not declarations[name].groupwise:
            continue
        if rollout.batch_size % rollout.group_size:
            raise ConfigError(
                f"reward {name} judges whole groups, and rollout.batch_size={rollout.batch_size} would cut "
                f"them. Expected a multiple of rollout.group_size={rollout.group_size}."
            )
        if world > rollout.groups:
            raise ConfigError(
                f"reward {name} judges whole groups, and {world} processes cannot share "
                f"rollout.groups={rollout.groups}. Expected at most {rollout.groups} processes, best a "
                "divisor of that number, or more groups of fewer images, e.g. "
                f"rollout.groups={world}."
            )
    if config.trainer.eval_every:
        groupwise = [name for name, declaration in declarations.items() if declaration.groupwise]
        check_evaluated_groups(resolve_evaluation(config), groupwise)
