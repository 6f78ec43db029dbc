"""Refuse guards that cannot work: without a trained reward, or with keys that would have no effect."""

from marble_cli.config.aspects import by_aspect, key_of
from marble_cli.config.enums import Role
from marble_cli.config.schema import RunConfig
from marble_cli.errors import ConfigError


def check_guards(config: RunConfig) -> None:
    """Refuse roles and margins that have no effect, and keys of the balance that name a guard.

    Raises:
        ConfigError: naming the key, its value and what was expected.
    """
    trained, watched = by_aspect(config.rewards), by_aspect(config.eval_rewards)
    for name, reward in watched.items():
        if reward.role is not Role.train:
            raise ConfigError(
                f"{key_of('eval_rewards', name)}.role={reward.role.value}: it is only watched. Expected "
                f"it under {key_of('rewards', name)}."
            )
    guards = [name for name, reward in trained.items() if reward.role is Role.guard]
    for group, rewards in (("rewards", trained), ("eval_rewards", watched)):
        for name, reward in rewards.items():
            if reward.margin and name not in guards:
                raise ConfigError(
                    f"{key_of(group, name)}.margin={reward.margin:g}: only guards have one. Expected 0, or "
                    f"{key_of('rewards', name)}.role=guard."
                )
    if len(guards) == len(trained):
        raise ConfigError(
            f"{key_of('rewards', guards[0])}.role=guard: every reward is a guard, so nothing would be "
            "learned. Expected at least one with role=train."
        )
    balance = config.balance
    named = {"weights": [*balance.weights], "priorities": [*balance.priorities]}
    named |= {f"groups.{group}": members for group, members in balance.groups.items()}
    for key, names in named.items():
        for name in names:
            if name in guards:
                raise ConfigError(
                    f"balance.{key}: {name} is a guard, which takes no part in the balance. Expected trained "
                    f"rewards, or {key_of('rewards', name)}.role=train."
                )
