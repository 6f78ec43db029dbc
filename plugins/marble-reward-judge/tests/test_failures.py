"""Failures between a judge and its server: which picture fails, with which message."""

import gzip
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import torch
from marble_reward_judge.chat import ServerError
from marble_reward_judge.judge import Judge
from marble_reward_judge.unifiedreward import UnifiedReward
from torch import Tensor

from marble_cli.config.schema import RewardConfig
from marble_cli.errors import RewardError
from marble_cli.rewards.scorer import open_scorer

if TYPE_CHECKING:
    from conftest import Server

Reply = tuple[int, Mapping[str, str], str]
RETRIED = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)


def pictures(count: int) -> Tensor:
    return torch.zeros(count, 3, 8, 8, dtype=torch.uint8)


def one_bad(
    judge: Callable[..., Judge], server: "Server", reply: tuple[int, Mapping[str, str], str]
) -> list[Any]:
    """Score three pictures, the second of which gets `reply`."""
    server.reply = lambda body, _: reply if "bad" in str(body["messages"]) else server.says("7")
    return judge(server.url, attempts=2)(pictures(3), ["good", "bad", "good"])


def family(error: type) -> Iterator[type]:
    """Yield all subclasses of an exception."""
    for kind in error.__subclasses__():
        yield kind
        yield from family(kind)


def test_an_unreachable_server_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    (error,) = UnifiedReward(url, attempts=2)(pictures(1), ["p"])
    assert isinstance(error, ServerError)
    assert str(error).startswith(f"{url}/chat/completions cannot be reached: ")
    assert str(error).endswith("(2 attempts)")


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (401, "Set api_key_env"),
        (403, "Set api_key_env"),
        (404, "Check base_url, which usually ends in /v1, and model"),
    ],
)
def test_a_refusal_ends_the_whole_batch_at_once(
    server: "Server", judge: Callable[..., Judge], status: int, remedy: str
) -> None:
    server.reply = lambda body, number: (status, {}, "no")
    with pytest.raises(ServerError, match=f"answered {status}: 'no'.*{remedy}"):
        judge(concurrency=1)(pictures(3), ["p"] * 3)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(("place", "text"), [(0, "the input was flagged"), (1, "no")])
def test_a_picture_that_moderation_refuses_fails_alone(
    server: "Server", judge: Callable[..., Judge], place: int, text: str
) -> None:
    answer = server.reply
    server.reply = lambda body, number: (403, {}, text) if number == place else answer(body, number)
    scores = judge(concurrency=1)(pictures(3), ["p"] * 3)
    assert [isinstance(score, ServerError) for score in scores] == [number == place for number in range(3)]


def test_a_refusal_inside_a_success_ends_the_whole_batch(
    judge: Callable[..., Judge], server: "Server"
) -> None:
    server.reply = lambda body, number: (200, {}, json.dumps({"error": {"code": 401}}))
    with pytest.raises(ServerError, match="Set api_key_env"):
        judge(server.url)(pictures(2), ["p", "p"])


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((400, {}, "too long"), "answered 400: 'too long'"),
        ((200, {}, "<html>"), "which is no chat completion"),
        ((200, {}, '{"choices": []}'), "which is no chat completion"),
        ((200, {}, '{"choices": [{"message": {"content": null}}]}'), "which has no text"),
    ],
)
def test_other_failures_concern_one_picture_and_are_not_retried(
    server: "Server", judge: Callable[..., Judge], reply: Reply, message: str
) -> None:
    server.reply = lambda body, _: server.says("3") if "good" in str(body["messages"]) else reply
    scores = judge()(pictures(2), ["good", "bad"])
    assert scores[0] == 0.3
    assert isinstance(scores[1], ServerError)
    assert message in str(scores[1])
    assert len(server.bodies) == 2


def test_an_answer_without_a_score_fails_only_its_picture(server: "Server") -> None:
    """Goes through the host: two scores, one failure, and its reason in the message."""
    server.reply = lambda body, _: server.says(
        "I cannot say." if "bad" in str(body["messages"]) else "Final Score: 2.5"
    )
    settings = RewardConfig(plugin="unifiedreward", max_failed=0.2, options={"base_url": server.url})
    with open_scorer({"mine": settings}, "cpu") as scorer:
        scores = scorer.submit(pictures(3), ["good", "bad", "good"], [{}] * 3, [""] * 3).result()
        assert scores.failed.tolist() == [[False, True, False]]
        assert scores.values[0, [0, 2]].tolist() == [0.5, 0.5]
        assert torch.isnan(scores.values[0, 1])
        with pytest.raises(
            RewardError, match="failed on 1 of 3 images.*the answer has no score: 'I cannot say.'"
        ):
            scorer.check(scores)
    assert len(server.bodies) == 3


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
def test_an_undecodable_answer_fails_only_its_picture(
    judge: Callable[..., Judge], server: "Server", reply: Any
) -> None:
    scores = one_bad(judge, server, reply)
    assert [scores[0], scores[2]] == [0.7, 0.7]
    assert isinstance(scores[1], ServerError)
    assert f"{server.url}/chat/completions" in str(scores[1])


@pytest.mark.parametrize(
    "kind", sorted({*family(httpx.HTTPError), httpx.InvalidURL}, key=lambda kind: kind.__name__)
)
def test_every_exception_of_httpx_fails_only_its_picture(
    judge: Callable[..., Judge], server: "Server", monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    """Raises every exception of httpx in the place of the second picture's answer."""
    post, asked = httpx.AsyncClient.post, []

    async def sometimes(client: httpx.AsyncClient, url: str, json: Any) -> httpx.Response:
        if "bad" not in str(json["messages"]):
            return await post(client, url, json=json)
        asked.append(url)
        if issubclass(kind, httpx.HTTPStatusError):
            raise kind("said", request=None, response=None)
        raise kind("said")

    monkeypatch.setattr(httpx.AsyncClient, "post", sometimes)
    scores = one_bad(judge, server, server.says("7"))
    assert [scores[0], scores[2]] == [0.7, 0.7]
    assert isinstance(scores[1], ServerError)
    assert len(asked) == (2 if issubclass(kind, RETRIED) else 1)
    assert (" (2 attempts)" in str(scores[1])) == issubclass(kind, RETRIED)


def test_a_prompt_that_json_cannot_hold_fails_only_its_picture(
    judge: Callable[..., Judge], server: "Server"
) -> None:
    server.reply = lambda body, number: server.says("7")
    scores = judge(server.url)(pictures(2), ["a", "\ud800"])
    assert scores[0] == 0.7
    assert "UnicodeEncodeError" in str(scores[1])
