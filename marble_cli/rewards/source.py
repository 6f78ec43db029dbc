"""Where a reward lives: in this process, at a server, or in an isolated environment of its own."""

from collections.abc import Callable

from marble_cli.config import schema
from marble_cli.redaction import learn_options
from marble_cli.rewards.api import Declaration
from marble_cli.rewards.registry import Reward, build, check_options, load_plugin


def declare(name: str, settings: schema.Reward) -> Declaration:
    """What the reward declares, once all is known to be right that can be known without building it.

    Raises:
        ConfigError: there is no such plugin, environment or served reward, or an option is wrong.
        RewardError: a plugin cannot be imported, or a server not be reached.
    """
    learn_options(settings.options)
    if settings.url is not None:
        from marble_cli.rewards.remote.client import address, examine
        from marble_cli.rewards.remote.protocol import declaration_from_json

        return declaration_from_json(examine(name, settings.plugin, address(name, settings)))
    if settings.isolated:
        from marble_cli.rewards.isolated import declared

        return declared(name, settings)
    plugin = load_plugin(settings.plugin)
    check_options(name, plugin, settings.options)
    return Declaration.of(plugin)


def maker(name: str, settings: schema.Reward, device: str) -> Callable[[], Reward]:
    """A function that builds the reward, and builds it anew when called again.

    Args:
        name: its key under `rewards`.
        settings: of the reward.
        device: where it should compute; a server decides that for itself.

    Raises:
        ConfigError, RewardError: as `declare`; the function itself may raise them too.
    """
    learn_options(settings.options)
    if settings.url is not None:
        from marble_cli.rewards.remote.client import address, bind, examine
        from marble_cli.rewards.remote.protocol import declaration_from_json

        at, served = address(name, settings), settings.plugin
        declaration = declaration_from_json(examine(name, served, at))
        return lambda: bind(name, served, at, declaration, settings.timeout)
    if settings.isolated:
        from marble_cli.rewards.isolated import IsolatedServer

        return IsolatedServer(name, settings, device).start
    return lambda: build(name, settings.plugin, settings.options, device)
