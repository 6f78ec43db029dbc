"""Keys, addresses and proxies."""

import socket
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch
from marble_reward_judge.chat import ServerError
from marble_reward_judge.endpoint import is_here
from marble_reward_judge.judge import Judge
from marble_reward_judge.unifiedreward import UnifiedReward
from torch import Tensor

if TYPE_CHECKING:
    from conftest import Server


def pictures(count: int) -> Tensor:
    return torch.zeros(count, 3, 8, 8, dtype=torch.uint8)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Run a proxy that drops every connection; return a function that counts them."""
    came: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                came.append(connection)  # before the client learns that its connection is gone
                connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{listener.getsockname()[1]}")
        yield lambda: len(came)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_the_key_comes_from_the_environment(
    server: "Server", judge: Callable[..., Judge], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(
        ValueError, match="the environment variable JUDGE_KEY, which api_key_env names, is not set"
    ):
        judge(api_key_env="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    judge(api_key_env="JUDGE_KEY")(pictures(1), ["p"])
    assert server.headers[0]["Authorization"] == "Bearer s3cret"


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        (" sk-abc", "begins or ends with white space"),
        ("sk-abc ", "begins or ends with white space"),
        ("sk-abc\n", "begins or ends with white space"),
        ("sk-abc\r\n", "begins or ends with white space"),
        ("\tsk-abc", "begins or ends with white space"),
        ("sk-abc\u00a0", "begins or ends with white space"),
        (" ", "begins or ends with white space"),
        ("sk-a bc", "has white space or a line end inside"),
        ("sk-a\nbc", "has white space or a line end inside"),
        ("sk-a\tbc", "has white space or a line end inside"),
        ("sk-a\u2028bc", "has white space or a line end inside"),
        ("sk-äbc", "letters that are not ASCII"),
        ("\ufeffsk-abc", "letters that are not ASCII"),
        ("sk-abc\u200b", "letters that are not ASCII"),
        ("“sk-abc”", "letters that are not ASCII"),
        ("sk-\udcffabc", "letters that are not ASCII"),
        ("sk-\x1babc", "has control characters"),
        ("sk-abc\x7f", "has control characters"),
    ],
)
def test_an_invalid_key_is_refused_and_not_shown(
    judge: Callable[..., Judge], server: "Server", monkeypatch: pytest.MonkeyPatch, key: str, fault: str
) -> None:
    monkeypatch.setenv("JUDGE_KEY", key)
    for build in (judge, UnifiedReward):
        with pytest.raises(ValueError, match=f"the environment variable JUDGE_KEY.*{fault}") as raised:
            build(server.url, api_key_env="JUDGE_KEY")
        assert "sk-" not in repr(raised.value)
        assert "abc" not in repr(raised.value)
    assert not server.bodies


def test_user_and_password_of_the_address_go_into_a_header_only(
    judge: Callable[..., Judge], server: "Server"
) -> None:
    server.reply = lambda body, number: (400, {}, "no")
    (error,) = judge(server.url.replace("://", "://me:pa55word@"))(pictures(1), ["p"])
    assert server.headers[0]["Authorization"] == "Basic bWU6cGE1NXdvcmQ="
    assert str(error) == f"{server.url}/chat/completions answered 400: 'no'"
    with pytest.raises(ValueError, match="expected one of them"):
        judge("http://me:pa55word@far/v1", api_key_env="JUDGE_KEY")


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://far/v1",
        "http://",
        "http://far:port",
        "http://far:99999999",
        "http://[::1",
        "http://fa\x00r",
        "",
    ],
)
def test_an_invalid_address_is_refused(judge: Callable[..., Judge], url: str) -> None:
    with pytest.raises(ValueError, match="base_url.*expected an address such as"):
        judge(url)


def test_unifiedreward_refuses_an_address_without_a_scheme() -> None:
    with pytest.raises(ValueError, match="base_url='localhost:8000': expected an address such as http"):
        UnifiedReward("localhost:8000")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST"])
def test_this_machine_is_reached_without_a_proxy(
    judge: Callable[..., Judge],
    server: "Server",
    monkeypatch: pytest.MonkeyPatch,
    proxy: Callable[[], int],
    host: str,
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    server.reply = lambda body, number: server.says("7")
    assert judge(server.url.replace("127.0.0.1", host))(pictures(1), ["p"]) == [0.7]
    assert proxy() == 0


def test_other_machines_are_reached_through_the_proxy(
    judge: Callable[..., Judge], monkeypatch: pytest.MonkeyPatch, proxy: Callable[[], int]
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    (error,) = judge("http://judge.example/v1", attempts=1)(pictures(1), ["p"])
    assert "cannot be reached" in str(error)
    assert proxy() == 1


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:80", True),
        ("http://127.9.9.9", True),
        ("http://[::1]:80", True),
        ("http://[::ffff:127.0.0.1]", True),
        ("http://0.0.0.0:80", True),
        ("http://[::]", True),
        ("http://localhost", True),
        ("http://LocalHost.:80", True),
        ("http://judge.localhost", True),
        ("http://localhost.example", False),
        ("http://notlocalhost", False),
        ("http://10.0.0.1", False),
        ("http://127.example", False),
        ("https://judge.example", False),
    ],
)
def test_addresses_of_this_machine_are_recognised(url: str, here: bool) -> None:
    assert is_here(url) is here


@pytest.mark.parametrize("proxy", ["http://[", "socks9://far", "socks5://far:1"])
def test_an_unusable_proxy_is_a_failure_that_names_the_server(
    judge: Callable[..., Judge], monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    answer: Any
    try:
        answer = judge("http://judge.example/v1", attempts=1)(pictures(1), ["p"])[0]
    except ServerError as error:
        answer = error
    assert "http://judge.example/v1/chat/completions" in str(answer)
