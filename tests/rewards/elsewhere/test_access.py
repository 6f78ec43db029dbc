"""Who may ask a server, for how much, and at which address."""

import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest

from marble_cli.config.schema import RewardConfig
from marble_cli.errors import ConfigError, RewardError, UnreachableError
from marble_cli.rewards.elsewhere import protocol
from marble_cli.rewards.elsewhere.client import Address, connect, examine, is_loopback, reaches_here
from marble_cli.rewards.elsewhere.locate import declare
from marble_cli.rewards.testing.samples import sample_batch
from tests.rewards.elsewhere.scoring import score

Install = Callable[..., None]
Serve = Callable[..., str]
At = Callable[..., RewardConfig]


def test_every_request_needs_the_token(
    install: Install, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(mine="brightness")
    url = serve({"mine": RewardConfig(plugin="mine")}, token="secret")
    settings = RewardConfig(plugin="mine", url=url)
    batch = sample_batch(())
    for headers in ({}, {"Authorization": "Bearer secre"}, {"Authorization": "secret"}):
        assert httpx.get(f"{url}/health", headers=headers).status_code == 401
        answer = httpx.post(f"{url}/score/mine", headers=headers, content=protocol.pack_batch(batch))
        assert answer.status_code == 401
    with pytest.raises(ConfigError, match=r"does not accept a request without a token.*MARBLE_REWARD_TOKEN"):
        declare("mine", settings)
    monkeypatch.setenv("MARBLE_REWARD_TOKEN", "wrong")
    with pytest.raises(ConfigError, match="does not accept the token"):
        declare("mine", settings)
    monkeypatch.setenv("OF_MINE", "secret")
    settings.token_env = "OF_MINE"
    assert score(settings, batch.images, batch.prompts).applicable.all()
    monkeypatch.setenv("MARBLE_REWARD_TOKEN", "secret")
    settings.token_env = None
    assert score(settings, batch.images, batch.prompts).applicable.all()
    settings.token_env = "NOWHERE"
    with pytest.raises(ConfigError, match="token_env=NOWHERE: no such variable"):
        declare("mine", settings)
    assert "secret" not in repr(Address(url, "secret"))


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"images": 5}, r"a batch of 6 images is more than the server takes, 5 \(--max-images\)"),
        ({"bytes": 70000}, r"a batch of \d+ bytes is more than the server takes, 70000 \(--max-bytes\)"),
    ],
)
def test_a_batch_that_is_too_large_stops_the_run(
    install: Install, serve: Serve, limits: dict[str, int], said: str
) -> None:
    install(mine="brightness")
    url = serve({"mine": RewardConfig(plugin="mine")}, **limits)
    settings = RewardConfig(plugin="mine", url=url)
    batch = sample_batch(())
    assert score(settings, batch.images[:5], batch.prompts[:5]).applicable.all()
    with pytest.raises(RewardError, match=said):
        score(settings, batch.images, batch.prompts)

    def pieces() -> Any:  # without a Content-Length
        data = protocol.pack_batch(batch)
        yield from (data[i : i + 1000] for i in range(0, len(data), 1000))

    assert httpx.post(f"{url}/score/mine", content=pieces()).status_code == 413


def test_a_local_server_is_reached_without_a_proxy(
    install: Install, at: At, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(mine="brightness")
    settings = at()
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    batch = sample_batch(())
    assert score(settings, batch.images, batch.prompts).applicable.all()


def test_a_body_that_is_no_batch_is_refused(install: Install, serve: Serve) -> None:
    install(mine="brightness")
    url = serve({"mine": RewardConfig(plugin="mine")})
    answer = httpx.post(f"{url}/score/mine", content=b"\x80\x04.")
    assert (answer.status_code, answer.json()["error"]["kind"]) == (400, "refused")
    answer = httpx.post(f"{url}/score/other", content=b"")
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        404,
        "'other' is not served here; mine is",
    )
    assert httpx.get(f"{url}/openapi.json").status_code == 404


def test_a_client_that_disconnects_while_sending_frees_its_place(
    capsys: pytest.CaptureFixture[str], install: Install, serve: Serve
) -> None:
    install(mine="brightness")
    url = serve({"mine": RewardConfig(plugin="mine")}, waiting=1)
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"POST /score/mine HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nabc")
        body = protocol.pack_batch(sample_batch(()))
        while httpx.post(f"{url}/score/mine", content=body).status_code != 503:
            time.sleep(0.01)  # it has not been read yet
    deadline = time.monotonic() + 10
    while (status := httpx.post(f"{url}/score/mine", content=body).status_code) == 503:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert status == 200
    assert not capsys.readouterr().err


def test_a_reward_that_is_not_served_is_named(install: Install, serve: Serve) -> None:
    install(mine="brightness")
    url = serve({"mine": RewardConfig(plugin="mine")})
    with pytest.raises(ConfigError, match=r"does not serve 'min'; did you mean 'mine'\? Known: mine"):
        connect("rewards.x", "min", Address(url, None), 1.0)
    with pytest.raises(ConfigError, match="is no reward server"):
        connect("rewards.x", "mine", Address(f"{url}/score", None), 1.0)
    with pytest.raises(UnreachableError, match="Expected http:// instead of https://"):
        connect("rewards.x", "mine", Address(url.replace("http", "https"), None), 1.0)
    assert httpx.get(f"{url}/health").json()["rewards"]["mine"]["origin"] == "samples 1.0"


@pytest.mark.parametrize(
    ("health", "said"),
    [
        (
            {"service": "marble-rewards", "protocol": 99, "marble": "9.0", "rewards": {}},
            r"protocol 99 \(marble 9.0\), this marble 1",
        ),
        ({"service": "another"}, "is no reward server"),
        ([], "is no reward server"),
    ],
)
def test_another_service_or_protocol_is_refused(health: Any, said: str) -> None:
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(health).encode())

        def log_message(self, *what: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(ConfigError, match=said):
            connect("rewards.x", "mine", Address(f"http://127.0.0.1:{server.server_port}", None), 1.0)
        thread.join()


def test_an_unreachable_server_is_named() -> None:
    with pytest.raises(
        UnreachableError, match=r"rewards.x.url=http://127.0.0.1:9: no reward server can be reached"
    ):
        connect("rewards.x", "mine", Address("http://127.0.0.1:9", None), 1.0)


def test_only_loopback_hosts_are_loopback() -> None:
    assert all(is_loopback(host) for host in ("localhost", "127.0.0.1", "127.8.9.1", "::1"))
    assert not any(
        is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org")
    )


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::1%lo", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", True),
        ("::", True),
        ("LocalHost.", True),
        ("far.localhost", True),
        ("localhost.example", False),
        ("notlocalhost", False),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("", False),
    ],
)
def test_hosts_of_this_machine_are_recognised(host: str, here: bool) -> None:
    assert reaches_here(host) is here


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://[::1", None),
        ("http://far:port", None),
        ("ftp://far", None),
        ("http://far:80\x00", None),
        ("http://far", "socks9://far"),
    ],
)
def test_an_unusable_address_or_proxy_is_refused(
    monkeypatch: pytest.MonkeyPatch, url: str, proxy: str | None
) -> None:
    for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    if proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(ConfigError, match="rewards.mine.url=.*no request can be made"):
        examine("rewards.mine", "mine", Address(url, None))
