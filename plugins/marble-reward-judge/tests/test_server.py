"""Keys, addresses, proxies and faults between a judge and its server."""

import gzip
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import tenacity
import torch
from marble_reward_judge import chat
from marble_reward_judge.chat import ServerError
from marble_reward_judge.endpoint import is_here
from marble_reward_judge.judge import Judge
from marble_reward_judge.unifiedreward import UnifiedReward
from torch import Tensor

if TYPE_CHECKING:
    from conftest import Server

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


def pictures(count: int) -> Tensor:
    return torch.zeros(count, 3, 8, 8, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses, and no proxies of this machine's environment."""
    monkeypatch.setattr(chat, "BACK_OFF", tenacity.wait_none())
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def judge(url: str, **options: Any) -> Judge:
    given = {"template": "Rate: {prompt}", "pattern": r"(\d+)", "low": 0, "high": 10, **options}
    return Judge(url, "a-model", **given)


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
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(
    server: "Server", monkeypatch: pytest.MonkeyPatch, key: str, fault: str
) -> None:
    monkeypatch.setenv("JUDGE_KEY", key)
    for build in (judge, UnifiedReward):
        with pytest.raises(ValueError, match=f"the environment variable JUDGE_KEY.*{fault}") as raised:
            build(server.url, api_key_env="JUDGE_KEY")
        assert "sk-" not in repr(raised.value)
        assert "abc" not in repr(raised.value)
    assert not server.bodies


def test_user_and_password_of_an_address_are_a_header_and_in_no_message(server: "Server") -> None:
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
def test_an_address_of_no_use_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="base_url.*expected an address such as"):
        judge(url)


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_statuses_that_may_pass(server: "Server", status: int) -> None:
    server.reply = lambda body, number: (status, {}, "busy") if number < 2 else server.says("7")
    assert judge(server.url, attempts=3)(pictures(1), ["p"]) == [0.7]


@pytest.mark.parametrize("status", [400, 402, 405, 413, 422, 302, 307, 308])
def test_statuses_that_stay(server: "Server", status: int) -> None:
    headers = {"Location": "/elsewhere"} if status < 400 else {}
    server.reply = lambda body, number: (status, headers, "no")
    (error,) = judge(server.url, attempts=3)(pictures(1), ["p"])
    assert f"answered {status}" in str(error)
    assert ("Set base_url to where it leads" in str(error)) == (status < 400)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "error", [{"message": "busy", "code": 429}, {"message": "overloaded"}, "busy", {"code": "503"}]
)
def test_an_error_in_a_success_is_tried_again(server: "Server", error: Any) -> None:
    server.reply = lambda body, number: (
        (200, {"Retry-After": "0"}, json.dumps({"error": error})) if number < 2 else server.says("7")
    )
    assert judge(server.url, attempts=3)(pictures(1), ["p"]) == [0.7]
    server.reply = lambda body, number: (200, {}, json.dumps({"error": error}))
    (failure,) = judge(server.url, attempts=2)(pictures(1), ["p"])
    assert isinstance(failure, ServerError)
    assert "(2 attempts)" in str(failure)


def test_an_error_in_a_success_that_refuses_the_key_ends_the_call(server: "Server") -> None:
    server.reply = lambda body, number: (200, {}, json.dumps({"error": {"code": 401}}))
    with pytest.raises(ServerError, match="Set api_key_env"):
        judge(server.url)(pictures(2), ["p", "p"])


@pytest.mark.parametrize("form", ["seconds", "date"])
@pytest.mark.parametrize("status", [200, 408, 429, 503])
def test_retry_after_reaches_tenacity(
    server: "Server", monkeypatch: pytest.MonkeyPatch, status: int, form: str
) -> None:
    later = datetime.now(UTC) + timedelta(seconds=30)
    asked = "30" if form == "seconds" else format_datetime(later, usegmt=True)
    pause, waited = chat._pause, []

    def noted(state: tenacity.RetryCallState) -> float:
        waited.append(pause(state))
        return 0.0

    monkeypatch.setattr(chat, "_pause", noted)
    wrong = (status, {"Retry-After": asked}, '{"error": {"code": 429}}')
    server.reply = lambda body, number: server.says("7") if number else wrong
    assert judge(server.url)(pictures(1), ["p"]) == [0.7]
    assert waited == [pytest.approx(30, abs=3)]


def one_bad(server: "Server", reply: tuple[int, Mapping[str, str], str]) -> list[Any]:
    """Scores of three pictures, the second of which gets `reply`."""
    server.reply = lambda body, _: reply if "bad" in str(body["messages"]) else server.says("7")
    return judge(server.url, attempts=2)(pictures(3), ["good", "bad", "good"])


@pytest.mark.parametrize(
    "reply",
    [
        (200, {"Content-Encoding": "gzip"}, "no gzip"),
        (200, {"Content-Encoding": "deflate"}, "no deflate"),
        (200, {"Content-Encoding": "gzip"}, gzip.compress(b"{}").decode("latin-1")[:9]),
        (200, {}, "\x92"),
        (200, {"Content-Type": "application/json; charset=utf-99"}, "{"),
        (200, {"Transfer-Encoding": "chunked"}, "no chunks\r\n\r\n"),
        (200, {"Bad\x00Header": "1"}, "{}"),
    ],
)
def test_an_answer_that_cannot_be_decoded_fails_its_picture_alone(server: "Server", reply: Any) -> None:
    scores = one_bad(server, reply)
    assert [scores[0], scores[2]] == [0.7, 0.7]
    assert isinstance(scores[1], ServerError)
    assert f"{server.url}/chat/completions" in str(scores[1])


def family(error: type) -> Iterator[type]:
    for kind in error.__subclasses__():
        yield kind
        yield from family(kind)


@pytest.mark.parametrize(
    "kind", sorted({*family(httpx.HTTPError), httpx.InvalidURL}, key=lambda kind: kind.__name__)
)
def test_whatever_httpx_raises_is_that_pictures_failure(
    server: "Server", monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    """Every exception of httpx, raised in place of the second picture's answer."""
    post, asked = httpx.AsyncClient.post, []

    async def sometimes(client: httpx.AsyncClient, url: str, json: Any) -> httpx.Response:
        if "bad" not in str(json["messages"]):
            return await post(client, url, json=json)
        asked.append(url)
        if issubclass(kind, httpx.HTTPStatusError):
            raise kind("said", request=None, response=None)
        raise kind("said")

    monkeypatch.setattr(httpx.AsyncClient, "post", sometimes)
    scores = one_bad(server, server.says("7"))
    assert [scores[0], scores[2]] == [0.7, 0.7]
    assert isinstance(scores[1], ServerError)
    assert len(asked) == (2 if issubclass(kind, PASSING) else 1)
    assert (" (2 attempts)" in str(scores[1])) == issubclass(kind, PASSING)


PASSING = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)


def test_a_certificate_that_is_not_trusted_is_not_tried_again(
    server: "Server", monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def distrust(client: httpx.AsyncClient, url: str, json: Any) -> httpx.Response:
        asked.append(url)
        raise httpx.ConnectError("certificate verify failed") from ssl.SSLCertVerificationError()

    monkeypatch.setattr(httpx.AsyncClient, "post", distrust)
    (error,) = judge(server.url, attempts=3)(pictures(1), ["p"])
    assert "certificate verify failed" in str(error)
    assert len(asked) == 1


def test_a_prompt_that_json_cannot_carry_fails_its_picture_alone(server: "Server") -> None:
    server.reply = lambda body, number: server.says("7")
    scores = judge(server.url)(pictures(2), ["a", "\ud800"])
    assert scores[0] == 0.7
    assert "UnicodeEncodeError" in str(scores[1])


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """A proxy that drops whoever comes; returns how many came."""
    came: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                came.append(connection.close())

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        for name in PROXIES[:3]:
            monkeypatch.setenv(name, f"http://127.0.0.1:{listener.getsockname()[1]}")
        yield lambda: len(came)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST"])
def test_no_proxy_stands_between_this_machine_and_itself(
    server: "Server", monkeypatch: pytest.MonkeyPatch, proxy: Callable[[], int], host: str
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    server.reply = lambda body, number: server.says("7")
    assert judge(server.url.replace("127.0.0.1", host))(pictures(1), ["p"]) == [0.7]
    assert proxy() == 0


def test_other_machines_are_reached_through_the_proxy(
    monkeypatch: pytest.MonkeyPatch, proxy: Callable[[], int]
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
def test_which_addresses_are_of_this_machine(url: str, here: bool) -> None:
    assert is_here(url) is here


@pytest.mark.parametrize("proxy", ["http://[", "socks9://far", "socks5://far:1"])
def test_a_proxy_of_no_use_is_named(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    answer: Any
    try:
        answer = judge("http://judge.example/v1", attempts=1)(pictures(1), ["p"])[0]
    except ServerError as error:
        answer = error
    assert "http://judge.example/v1/chat/completions" in str(answer)


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({}, {"temperature": 0.0, "max_tokens": 512}),
        ({"max_tokens": None}, {"temperature": 0.0}),
        ({"temperature": None}, {"max_tokens": 512}),
        ({"max_tokens": None, "temperature": None}, {}),
        (
            {"max_tokens": None, "extra_body": {"max_completion_tokens": 64}},
            {"temperature": 0.0, "max_completion_tokens": 64},
        ),
        (
            {"extra_body": {"temperature": 1, "stop": ["\n"]}},
            {"temperature": 1, "max_tokens": 512, "stop": ["\n"]},
        ),
        (
            {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
            {"temperature": 0.0, "max_tokens": 512, "chat_template_kwargs": {"enable_thinking": False}},
        ),
    ],
)
def test_what_a_request_holds(server: "Server", options: dict[str, Any], sent: dict[str, Any]) -> None:
    server.reply = lambda body, number: server.says("Final Score: 4")
    judge(server.url, **options)(pictures(1), ["p"])
    UnifiedReward(server.url, **options)(pictures(1), ["p"])
    for body in server.bodies:
        assert {key: body[key] for key in body.keys() - {"model", "messages"}} == sent


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"messages": []}, "extra_body.messages: the judge decides that itself"),
        ({"stream": True}, "extra_body.stream"),
        ({"n": 2}, "extra_body.n"),
        ({"x": object()}, "cannot be sent as JSON"),
    ],
)
def test_extras_of_no_use(server: "Server", extra: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge(server.url, extra_body=extra)
