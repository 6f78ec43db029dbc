"""The life of a reward server: read a run's request, build the rewards, listen, stop on a signal."""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from typing import Any

import uvicorn
import yaml

from marble_cli.config.schema import AspectConfig, RewardConfig
from marble_cli.errors import RequestError
from marble_cli.interrupts import Interrupt
from marble_cli.redaction import learn
from marble_cli.rewards.elsewhere.client import is_loopback
from marble_cli.rewards.elsewhere.locate import declare, maker
from marble_cli.rewards.elsewhere.protocol import PROTOCOL
from marble_cli.rewards.elsewhere.server import Limits, Served, build_app, health
from marble_cli.rewards.registry import origin
from marble_cli.rewards.worker import RewardWorker

Announce = Callable[[dict[str, Any]], None]  # sends a document to whoever started the server
GRACE = 2.0  # seconds that a server has for stopping once standard input is closed


def read_request() -> tuple[dict[str, RewardConfig], dict[str, str], str, str | None]:
    """Read rewards, their dotted keys, device and token from standard input, where a run writes a line."""
    request = json.loads(sys.stdin.buffer.readline())
    rewards = {}
    for name, row in request["rewards"].items():
        aspects = {aspect: AspectConfig() for aspect in row["aspects"]}
        rewards[name] = RewardConfig(**{**row, "aspects": aspects, "options": yaml.safe_load(row["options"])})
    return rewards, request["keys"], request["device"], request["token"]


def end_with_stdin() -> None:
    """Stop this process when the run that started it closes standard input, by its end at the latest."""
    threading.Thread(target=_stop_when_stdin_closes, daemon=True).start()


def _stop_when_stdin_closes() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    if os.getpgrp() == os.getpid():  # a group of its own: what plugins started ends as well
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def describe_rewards(
    rewards: Mapping[str, RewardConfig],
    keys: Mapping[str, str],
    host: str,
    token: str | None,
    limits: Limits,
    announce: Announce,
) -> int:
    """Announce the health document that a server of these rewards would give, without building any.

    The arguments are those of `serve_rewards`.

    Returns:
        The exit code, 0.

    Raises:
        RequestError: `host` can be reached from other machines and there is no token.
        ConfigError, RewardError: a reward is unknown or has a wrong option, or its plugin cannot be imported.
    """
    _check_exposure(host, token)
    served = {
        name: Served(declare(name, row, keys.get(name)), origin(row.plugin)) for name, row in rewards.items()
    }
    announce(health(served, limits))
    return 0


def serve_rewards(
    rewards: Mapping[str, RewardConfig],
    keys: Mapping[str, str],
    device: str,
    host: str,
    port: int,
    token: str | None,
    limits: Limits,
    announce: Announce,
) -> int:
    """Build rewards and serve them until a signal.

    Args:
        rewards: settings by name.
        keys: the dotted keys of those that are not `rewards.<name>`.
        device: where they compute, e.g. "cuda:1".
        host: address to listen on.
        port: to listen on; 0 takes a free one.
        token: secret that clients must send, None for none.
        limits: of a call.
        announce: called with the server's URL, rewards and protocol once the server listens.

    Returns:
        The exit code: 143 after SIGTERM, else 0.

    Raises:
        RequestError: the address cannot be used, or can be reached from other machines and there is no token.
        ConfigError, RewardError: a reward is unknown or cannot be built.
    """
    _check_exposure(host, token)
    origins = {name: origin(settings.plugin) for name, settings in rewards.items()}
    for name, settings in rewards.items():
        declare(name, settings, keys.get(name))  # all are checked before any is built
    with ExitStack() as stack:
        listener = stack.enter_context(_bind_socket(host, port))
        workers = {}
        for name, settings in rewards.items():
            worker = RewardWorker(name, settings, maker(name, settings, device, key=keys.get(name)))
            workers[name] = stack.enter_context(closing(worker))
        config = uvicorn.Config(
            build_app(workers, origins, token, limits),
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=5,
        )
        document = {"url": _url(listener), "rewards": list(workers), "protocol": PROTOCOL}
        with Interrupt() as interrupt:
            _AnnouncingServer(config, interrupt, lambda: announce(document)).run(sockets=[listener])
    return 143 if interrupt.exit_code == 143 else 0


class _AnnouncingServer(uvicorn.Server):
    """A uvicorn server that says when it listens, and stops if a signal came while it started."""

    def __init__(self, config: uvicorn.Config, interrupt: Interrupt, announce: Callable[[], None]):
        super().__init__(config)
        self.interrupt, self.announce = interrupt, announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.announce()
        self.should_exit = self.should_exit or self.interrupt.exit_code is not None


def _check_exposure(host: str, token: str | None) -> None:
    learn(token)
    if token is None and not is_loopback(host):
        raise RequestError(
            f"--host {host} can be reached from other machines, and no token is set. Set one: "
            "MARBLE_REWARD_TOKEN=... or --token, or leave --host out."
        )


def _bind_socket(host: str, port: int) -> socket.socket:
    """Bind a socket without listening yet, so that clients that come too early are refused at once."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise RequestError(
            f"--host {host} --port {port}: cannot listen there: {error.strerror or error}. "
            "Choose another address, or --port 0."
        ) from error
    return bound


def _url(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
