"""Compare the aspects that a configuration names with those that a reward declares."""

from collections.abc import Sequence

from marble_cli.config.schema import RewardConfig
from marble_cli.errors import ConfigError
from marble_cli.rewards.api import Declaration
from marble_cli.suggest import nearest


def check_aspects(key: str, chosen: Sequence[str], declaration: Declaration) -> Declaration:
    """Check that a reward has the aspects that are `chosen`; return its declaration.

    Args:
        key: the reward's dotted key, such as `rewards.judge`.
        chosen: aspects that the configuration names.
        declaration: of the reward.

    Raises:
        ConfigError: the reward has no such aspect, or gives a single score.
    """
    if chosen and not declaration.aspects:
        raise ConfigError(
            f"{key}.aspects=[{','.join(chosen)}]: the reward gives one score and declares no "
            f"aspects. Leave the key out: ~{key}.aspects"
        )
    for aspect in chosen:
        if aspect not in declaration.aspects:
            raise ConfigError(
                f"{key}.aspects: the reward has no aspect {aspect!r}{nearest(aspect, declaration.aspects)}"
            )
    return declaration


def require_choice(key: str, settings: RewardConfig, declaration: Declaration) -> None:
    """Check that a configuration says which of several scores a run uses.

    Raises:
        ConfigError: the reward gives several scores, and none is named.
    """
    if declaration.aspects and not settings.aspects:
        every = ",".join(declaration.aspects)
        raise ConfigError(
            f"{key} gives several scores: {', '.join(declaration.aspects)}. Say which of them "
            f"become rewards: {key}.aspects=[{every}]"
        )
