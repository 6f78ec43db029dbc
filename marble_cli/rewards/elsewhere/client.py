"""Call a reward on a server, as a run calls any other reward."""

import os
import time
from collections.abc import Mapping
from contextlib import closing
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

Scores = Tensor | list[float | Exception]
HEALTH_TIMEOUT = 10.0  # seconds that a server has for sending the health document
QUEUE = 10  # times the timeout that a call waits for those of other callers
PAUSE = 0.5  # seconds before a call is made again for which the server had no place


class RemoteError(Exception):
    """A call that the server refused or could not answer; the worker retries it."""


class BusyError(RemoteError):
    """A call for which the server has no place yet."""


@dataclass(frozen=True)
class Address:
    """The URL of a server and its token, which `repr` and messages leave out."""

    url: str
    token: str | None

    def client(self, timeout: float) -> httpx.Client:
        """Return a client that opens a connection per call and uses no proxy to reach this machine.

        A connection that is kept may have been closed by the server in the meantime.
        """
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
    """Tell whether `host` can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def reaches_here(host: str) -> bool:
    """Tell whether a client that connects to `host` reaches this machine, without a proxy."""
    host = host.lower().partition("%")[0].removeprefix("::ffff:").rstrip(".")
    return is_loopback(host) or host.endswith(".localhost") or host in ("0.0.0.0", "::")


def address(key: str, settings: schema.RewardConfig) -> Address:
    """Return the address of the server of the reward at `key`, with its token from the environment.

    Raises:
        ConfigError: `token_env` names a variable that is not set, or the value cannot be a token.
    """
    assert settings.url is not None
    variable = settings.token_env or protocol.TOKEN_VARIABLE
    token = os.environ.get(variable) or None
    if settings.token_env and token is None:
        raise ConfigError(
            f"{key}.token_env={settings.token_env}: no such variable in the environment. "
            "Expected a variable that holds the server's token."
        )
    if token is not None:
        learn(token)
        protocol.authorization(token, f"{key}.url: the environment variable {variable}")
    return Address(settings.url.rstrip("/"), token)


def examine(key: str, served: str, at: Address) -> Mapping[str, Any]:
    """Ask the server at `at` for its declaration of the reward `served`.

    Raises:
        UnreachableError: the server cannot be reached.
        ConfigError: it is no reward server, speaks another protocol, refuses the token, or lacks the reward.
    """
    place = f"{key}.url={at.url}"
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
            f"{place}: no request can be made: {_reason(error)}. "
            "Check the address, and the proxies in the environment."
        ) from error
    except httpx.HTTPError as error:
        reason, start = _reason(error), f"Start it: marble rewards serve {served}"
        if "WRONG_VERSION_NUMBER" in reason:  # something answers, without TLS
            start = "Expected http:// instead of https://, or a proxy with TLS there"
        raise UnreachableError(
            f"{place}: no reward server can be reached there: {reason}. {start}"
        ) from error
    if answer.status_code == 401:
        refused = "the token" if at.token else "a request without a token"
        raise ConfigError(
            f"{place}: the server does not accept {refused}. Expected its token in "
            f"{protocol.TOKEN_VARIABLE}, or in the variable that {key}.token_env names."
        )
    try:
        document = answer.json()
        protocol_version, rewards = document["protocol"], document["rewards"]
        is_reward_server = document["service"] == protocol.SERVICE and answer.status_code == 200
    except (ValueError, KeyError, TypeError):
        is_reward_server = False
    if not is_reward_server:
        raise ConfigError(
            f"{place}: what answers there (status {answer.status_code}) is no reward server. "
            "Expected the address that `marble rewards serve` prints."
        )
    if protocol_version != protocol.PROTOCOL:
        raise ConfigError(
            f"{place}: the server speaks protocol {protocol_version} (marble {document.get('marble')}), "
            f"this marble {protocol.PROTOCOL}. Install the same version on both sides."
        )
    if served not in rewards:
        raise ConfigError(f"{place}: that server does not serve {served!r}{nearest(served, rewards)}")
    return dict(rewards[served])


def connect(key: str, name: str, at: Address, timeout: float) -> Reward:
    """Return the reward `name` of the server at `at`.

    Args:
        key: its dotted key in the configuration.
        name: its name, on the server too.
        at: the server's address.
        timeout: seconds per call.

    Raises:
        UnreachableError, ConfigError: as `examine`.
    """
    declaration = protocol.declaration_from_json(examine(key, name, at))
    return bind(key, name, name, at, declaration, timeout)


def bind(key: str, name: str, served: str, at: Address, declaration: Declaration, timeout: float) -> Reward:
    """Return a served reward as `connect` does, with a declaration that is known already.

    A call raises TimeoutError if those of other callers have come first for `QUEUE` times `timeout`.
    """
    client = at.client(timeout)

    def call(batch: Batch) -> Scores | dict[str, Scores]:
        request = client.build_request(
            "POST",
            f"/score/{served}",
            content=protocol.pack_batch(batch),
            headers={"Accept": f"{protocol.TURNS}, */*", protocol.TIMEOUT: str(timeout)},
        )
        deadline = time.monotonic() + QUEUE * timeout
        while True:
            try:
                return _result(_send(key, client, request, timeout, deadline))
            except BusyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(PAUSE)

    return Reward(name, declaration, call, Guard(name), client.close)


def _send(
    key: str, client: httpx.Client, request: httpx.Request, timeout: float, deadline: float
) -> httpx.Response:
    """Send a request for scores and return its answer, after the call's turn if the server tells that.

    Raises:
        TimeoutError: the call still waits for its turn at the deadline.
        httpx.TransportError: the server did not answer.
    """
    server, in_turns = client.base_url, False
    try:
        answer = client.send(request, stream=True)
        with closing(answer):
            in_turns = answer.headers.get("Content-Type") == protocol.TURNS
            if not in_turns:
                answer.read()
                return answer
            body = b""
            for piece in answer.iter_bytes():
                body = body + piece if body else piece.lstrip(protocol.BEAT)
                if not body and time.monotonic() > deadline:
                    raise TimeoutError(
                        f"{server}: calls of other processes have come first for {QUEUE * timeout:g} s, "
                        f"{QUEUE} times {key}.timeout. Raise it, or start more servers."
                    )
    except httpx.TimeoutException as error:
        said = f" of the call's turn. If calls take that long, raise {key}.timeout."
        if not in_turns:
            said = (
                ". See to that server. If it is of an older marble and several processes ask it, each waits "
                f"for the others: raise {key}.timeout, or start a server for each."
            )
        raise type(error)(f"{server}: no answer within {timeout:g} s{said}") from error
    status, content = protocol.unpack_answer(body)
    return httpx.Response(status, content=content, request=request)


def _result(answer: httpx.Response) -> Scores | dict[str, Scores]:
    """Read the scores of an answer, or those of each aspect, with exceptions where the plugin failed."""
    if answer.status_code == 200:
        parts = {name: _scores(*part) for name, part in protocol.unpack_scores(answer.content).items()}
        return parts[""] if [*parts] == [""] else parts
    try:
        error = answer.json()["error"]
        kind, message = error["kind"], error["message"]
    except (ValueError, KeyError, TypeError):
        raise RemoteError(f"status {answer.status_code}: {answer.text[:200]}") from None
    if answer.status_code == 503 and kind == protocol.REFUSED:
        raise BusyError(message)
    if kind in (protocol.CONTRACT, protocol.TOO_LARGE):
        raise RewardError(f"{answer.url.copy_with(path='/')}: {message}")
    raise RemoteError(message)


def _scores(scores: Tensor, reasons: Mapping[int, str]) -> Scores:
    if not reasons:
        return scores
    return [RemoteError(reasons[i]) if i in reasons else score for i, score in enumerate(scores.tolist())]


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
