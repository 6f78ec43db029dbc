"""The run's side: a served reward, called like any other."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx
from torch import Tensor

from marble_cli.config import schema
from marble_cli.errors import ConfigError, RewardError, UnreachableError
from marble_cli.redaction import learn
from marble_cli.rewards.api import Batch, Declaration
from marble_cli.rewards.elsewhere import protocol
from marble_cli.rewards.guard import Guard
from marble_cli.rewards.registry import Reward
from marble_cli.suggest import nearest

HEALTH_TIMEOUT = 10.0  # seconds for the health document


class RemoteError(Exception):
    """A call that the server refused or could not answer; the lane tries again."""


@dataclass(frozen=True)
class Address:
    """Where a server is and what it must be shown; the token stays out of `repr` and messages."""

    url: str
    token: str | None

    def client(self, timeout: float) -> httpx.Client:
        """A connection a call, so that none that the server has dropped is used again; no proxy to this machine itself."""
        headers = {"Authorization": protocol.authorization(self.token)} if self.token else {}
        return httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=timeout,
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=not reaches_here(urlsplit(self.url).hostname or ""),
        )

    def __repr__(self) -> str:
        return f"Address({self.url!r})"


def is_loopback(host: str) -> bool:
    """Whether `host` is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def reaches_here(host: str) -> bool:
    """Whether a client that asks `host` reaches this machine, where a proxy has no business."""
    host = host.lower().partition("%")[0].removeprefix("::ffff:").rstrip(".")
    return is_loopback(host) or host.endswith(".localhost") or host in ("0.0.0.0", "::")


def address(name: str, settings: schema.RewardConfig) -> Address:
    """Where the reward `name` is served, and its token from the environment.

    Raises:
        ConfigError: `token_env` names a variable that is not set, or its value is no token.
    """
    assert settings.url is not None
    variable = settings.token_env or protocol.TOKEN_VARIABLE
    token = os.environ.get(variable) or None
    if settings.token_env and token is None:
        raise ConfigError(
            f"rewards.{name}.token_env={settings.token_env}: no such variable in the environment. "
            "Expected one that holds the server's token."
        )
    if token is not None:
        learn(token)
        protocol.authorization(token, f"rewards.{name}.url: the environment variable {variable}")
    return Address(settings.url.rstrip("/"), token)


def examine(name: str, served: str, at: Address) -> Mapping[str, Any]:
    """What the server at `at` says of its reward `served`, once it is known to be a server that we can talk to.

    Raises:
        UnreachableError: nobody answers.
        ConfigError: it is no reward server, speaks another protocol, wants another token, or lacks the reward.
    """
    key = f"rewards.{name}.url={at.url}"
    try:
        with at.client(HEALTH_TIMEOUT) as client:
            answer = client.get("/health")
    except (
        httpx.InvalidURL,
        httpx.UnsupportedProtocol,
        httpx.LocalProtocolError,
        ImportError,
        ValueError,
    ) as error:
        raise ConfigError(
            f"{key}: no request can be made: {_reason(error)}. "
            "Check the address, and the proxies in the environment."
        ) from error
    except httpx.HTTPError as error:
        raise UnreachableError(
            f"{key}: no reward server can be reached there: {_reason(error)}. Start it: marble rewards serve {served}"
        ) from error
    if answer.status_code == 401:
        raise ConfigError(
            f"{key}: the server does not accept {'the token' if at.token else 'a request without a token'}. Expected "
            f"its token in {protocol.TOKEN_VARIABLE}, or in the variable that rewards.{name}.token_env names."
        )
    try:
        document = answer.json()
        protocol_version, rewards = document["protocol"], document["rewards"]
        theirs = document["service"] == protocol.SERVICE and answer.status_code == 200
    except (ValueError, KeyError, TypeError):
        theirs = False
    if not theirs:
        raise ConfigError(
            f"{key}: what answers there (status {answer.status_code}) is no reward server. Expected the address "
            "that `marble rewards serve` prints."
        )
    if protocol_version != protocol.PROTOCOL:
        raise ConfigError(
            f"{key}: the server speaks protocol {protocol_version} (marble {document.get('marble')}), this marble "
            f"{protocol.PROTOCOL}. Install the same version on both sides."
        )
    if served not in rewards:
        raise ConfigError(f"{key}: that server does not serve {served!r}{nearest(served, rewards)}")
    return dict(rewards[served])


def connect(name: str, served: str, at: Address, timeout: float) -> Reward:
    """The reward `served` of the server at `at`, as the reward `name`.

    Args:
        name: its key under `rewards`.
        served: its name at the server.
        at: the server.
        timeout: seconds for one call.

    Raises:
        UnreachableError, ConfigError: as `examine`.
    """
    return bind(name, served, at, protocol.declaration_from_json(examine(name, served, at)), timeout)


def bind(name: str, served: str, at: Address, declaration: Declaration, timeout: float) -> Reward:
    """As `connect`, of a server that has been examined."""
    client = at.client(timeout)

    def call(batch: Batch) -> Tensor | list[float | Exception]:
        return _result(client.post(f"/score/{served}", content=protocol.pack_batch(batch)))

    return Reward(name, declaration, call, Guard(name), client.close)


def _result(answer: httpx.Response) -> Tensor | list[float | Exception]:
    """The scores, with exceptions where the plugin had some."""
    if answer.status_code == 200:
        scores, reason = protocol.unpack_scores(answer.content)
        if reason is None:
            return scores
        return [RemoteError(reason) if math.isinf(score) else score for score in scores.tolist()]
    try:
        error = answer.json()["error"]
        kind, message = error["kind"], error["message"]
    except (ValueError, KeyError, TypeError):
        raise RemoteError(f"status {answer.status_code}: {answer.text[:200]}") from None
    if kind in (protocol.CONTRACT, protocol.TOO_LARGE):
        raise RewardError(f"{answer.url.copy_with(path='/')}: {message}")
    raise RemoteError(message)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
