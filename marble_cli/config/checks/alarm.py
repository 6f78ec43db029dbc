"""Refuse an alarm that could never sound."""

from marble_cli.config.aspects import by_aspect
from marble_cli.config.enums import OnHacking, Role
from marble_cli.config.schema import RunConfig
from marble_cli.errors import ConfigError


def check_alarm(config: RunConfig) -> None:
    """Check that evaluations of the run can show signs of reward hacking, if the run is to act on them.

    Raises:
        ConfigError: naming `trainer.on_hacking`, what is missing and what was expected.
    """
    key = f"trainer.on_hacking={config.trainer.on_hacking.value}"
    if config.trainer.on_hacking is OnHacking.warn:
        return
    if not config.trainer.eval_every:
        raise ConfigError(
            f"{key}: only evaluations can tell, and trainer.eval_every=0 makes none. Expected "
            "trainer.eval_every of at least 1."
        )
    if not config.eval_rewards and all(one.role is Role.train for one in by_aspect(config.rewards).values()):
        raise ConfigError(
            f"{key}: every reward is trained, so none could show that they are hacked. Expected a watched "
            "reward under eval_rewards, or a guard (rewards.<name>.role=guard)."
        )
