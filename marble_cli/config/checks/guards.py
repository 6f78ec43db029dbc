"""Refuse guards that cannot work: without a trained reward, or with keys that would have no effect."""

from marble_cli.config.enums import Role
from marble_cli.config.schema import RunConfig
from marble_cli.errors import ConfigError


def check_guards(config: RunConfig) -> None:
    """Refuse roles and margins that have no effect, and keys of the balance that name a guard.

    Raises:
        ConfigError: naming the key, its value and what was expected.
    """
    for name, reward in config.eval_rewards.items():
        if reward.role is not Role.train:
            raise ConfigError(
                f"eval_rewards.{name}.role={reward.role.value}: it is only watched. Expected it under "
                f"rewards.{name}."
            )
    guards = [name for name, reward in config.rewards.items() if reward.role is Role.guard]
    for key, rewards in (("rewards", config.rewards), ("eval_rewards", config.eval_rewards)):
        for name, reward in rewards.items():
            if reward.margin and name not in guards:
                raise ConfigError(
                    f"{key}.{name}.margin={reward.margin:g}: only guards have one. Expected 0, or "
                    f"rewards.{name}.role=guard."
                )
    if len(guards) == len(config.rewards):
        raise ConfigError(
            f"rewards.{guards[0]}.role=guard: every reward is a guard, so nothing would be learned. Expected "
            "at least one with role=train."
        )
    balance = config.balance
    named = {"weights": [*balance.weights], "priorities": [*balance.priorities]}
    named |= {f"groups.{group}": members for group, members in balance.groups.items()}
    for key, names in named.items():
        for name in names:
            if name in guards:
                raise ConfigError(
                    f"balance.{key}: {name} is a guard, which takes no part in the balance. Expected trained "
                    f"rewards, or rewards.{name}.role=train."
                )
