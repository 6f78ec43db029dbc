"""Refuse a reward whose keys name more than one place to run it: this process, a server, an environment."""

from urllib.parse import urlsplit

from marble_cli.config.schema import RewardConfig
from marble_cli.errors import ConfigError


def check_placement(key: str, reward: RewardConfig) -> None:
    """Check that a reward runs in one place, and that its options are given in that place.

    Args:
        key: the dotted key of the reward, such as `rewards.ocr`.
        reward: its configuration.

    Raises:
        ConfigError: its url is no address, its keys name two places, or its options belong to its server.
    """
    if reward.url is None:
        if reward.token_env is not None:
            raise ConfigError(
                f"{key}.token_env={reward.token_env}: there is no {key}.url that it belongs to. Expected "
                "both or neither."
            )
        return
    if not _is_address(reward.url):
        raise ConfigError(
            f"{key}.url={reward.url}: expected http://HOST:PORT or https://HOST:PORT, as `marble rewards "
            "serve` prints it; a token belongs in the environment, in the variable that "
            f"{key}.token_env names."
        )
    if reward.isolated:
        raise ConfigError(f"{key} has a url and isolated=true. Expected one of them.")
    if reward.options:
        option = next(iter(reward.options))
        removals = " ".join(f"'~{key}.{name}'" for name in reward.options)
        raise ConfigError(
            f"{key}.{option}: the options of a reward with a url belong to its server: marble rewards serve "
            f"{reward.plugin} rewards.{reward.plugin}.{option}=... Here, leave out what is set there: "
            f"{removals}"
        )


def _is_address(url: str) -> bool:
    """Return whether `url` is http(s)://HOST[:PORT] without a user, password or query."""
    try:
        parts = urlsplit(url)
        usable = parts.port != 0  # raises ValueError if the port is not a number up to 65535
    except ValueError:
        return False
    bare = not (parts.username or parts.password or parts.query)
    return usable and bare and parts.scheme in ("http", "https") and bool(parts.hostname)
