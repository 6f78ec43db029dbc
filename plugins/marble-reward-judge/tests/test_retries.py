"""Which failures are retried, and how long a judge waits before the next attempt."""

import json
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import tenacity
import torch
from marble_reward_judge import chat
from marble_reward_judge.chat import ServerError
from marble_reward_judge.judge import Judge
from torch import Tensor

if TYPE_CHECKING:
    from conftest import Server


def pictures(count: int) -> Tensor:
    return torch.zeros(count, 3, 8, 8, dtype=torch.uint8)


def failures(scores: list[Any]) -> list[str | None]:
    """Return the message of each failure, None for a score."""
    return [str(score) if isinstance(score, Exception) else None for score in scores]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_temporary_failure_is_retried(server: "Server", judge: Callable[..., Judge], status: int) -> None:
    server.reply = lambda body, number: (status, {}, "busy") if number < 2 else server.says("7")
    assert judge(attempts=3)(pictures(1), ["p"]) == [0.7]
    assert len(server.bodies) == 3


@pytest.mark.parametrize("status", [429, 502])
def test_after_the_last_attempt_only_that_picture_fails(
    server: "Server", judge: Callable[..., Judge], status: int
) -> None:
    server.reply = lambda body, _: (
        server.says("7") if "good" in str(body["messages"]) else (status, {}, "overloaded")
    )
    scores = judge(attempts=2)(pictures(3), ["good", "bad", "good"])
    assert [scores[0], scores[2]] == [0.7, 0.7]
    assert isinstance(scores[1], ServerError)
    assert str(scores[1]) == f"{server.url}/chat/completions answered {status}: 'overloaded' (2 attempts)"
    assert len(server.bodies) == 4


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_temporary_statuses_are_retried(judge: Callable[..., Judge], server: "Server", status: int) -> None:
    server.reply = lambda body, number: (status, {}, "busy") if number < 2 else server.says("7")
    assert judge(server.url, attempts=3)(pictures(1), ["p"]) == [0.7]


@pytest.mark.parametrize("status", [400, 402, 405, 413, 422, 302, 307, 308])
def test_other_statuses_are_not_retried(judge: Callable[..., Judge], server: "Server", status: int) -> None:
    headers = {"Location": "/elsewhere"} if status < 400 else {}
    server.reply = lambda body, number: (status, headers, "no")
    (error,) = judge(server.url, attempts=3)(pictures(1), ["p"])
    assert f"answered {status}" in str(error)
    assert ("Set base_url to where it leads" in str(error)) == (status < 400)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "error", [{"message": "busy", "code": 429}, {"message": "overloaded"}, "busy", {"code": "503"}]
)
def test_an_error_inside_a_success_is_retried(
    judge: Callable[..., Judge], server: "Server", error: Any
) -> None:
    server.reply = lambda body, number: (
        (200, {"Retry-After": "0"}, json.dumps({"error": error})) if number < 2 else server.says("7")
    )
    assert judge(server.url, attempts=3)(pictures(1), ["p"]) == [0.7]
    server.reply = lambda body, number: (200, {}, json.dumps({"error": error}))
    (failure,) = judge(server.url, attempts=2)(pictures(1), ["p"])
    assert isinstance(failure, ServerError)
    assert "(2 attempts)" in str(failure)


def test_the_next_attempt_waits_for_retry_after(server: "Server", judge: Callable[..., Judge]) -> None:
    server.reply = lambda body, number: server.says("7") if number else (429, {"Retry-After": "0.25"}, "")
    assert judge()(pictures(1), ["p"]) == [0.7]
    assert 0.25 <= server.times[1] - server.times[0] < 1


@pytest.mark.parametrize("asked", ["86400", "inf"])
def test_retry_after_is_cut_to_a_minute(asked: str) -> None:
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.set_exception((None, chat._TemporaryError("busy", chat._parse_retry_after(asked)), None))
    assert chat._seconds_to_wait(state) == 60


def test_retry_after_is_seconds_or_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert chat._parse_retry_after(later) == pytest.approx(90, abs=2)
    assert chat._parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert chat._parse_retry_after("12") == 12
    assert chat._parse_retry_after("soon") is None
    assert chat._parse_retry_after(None) is None


@pytest.mark.parametrize("form", ["seconds", "date"])
@pytest.mark.parametrize("status", [200, 408, 429, 503])
def test_retry_after_of_every_status_reaches_tenacity(
    judge: Callable[..., Judge], server: "Server", monkeypatch: pytest.MonkeyPatch, status: int, form: str
) -> None:
    later = datetime.now(UTC) + timedelta(seconds=30)
    asked = "30" if form == "seconds" else format_datetime(later, usegmt=True)
    wait, waited = chat._seconds_to_wait, []

    def record(state: tenacity.RetryCallState) -> float:
        waited.append(wait(state))
        return 0.0

    monkeypatch.setattr(chat, "_seconds_to_wait", record)
    wrong = (status, {"Retry-After": asked}, '{"error": {"code": 429}}')
    server.reply = lambda body, number: server.says("7") if number else wrong
    assert judge(server.url)(pictures(1), ["p"]) == [0.7]
    assert waited == [pytest.approx(30, abs=3)]


def test_without_retry_after_the_judge_backs_off(
    server: "Server", judge: Callable[..., Judge], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "BACK_OFF", tenacity.wait_fixed(0.2))
    server.reply = lambda body, number: server.says("7") if number else (500, {}, "")
    judge()(pictures(1), ["p"])
    assert server.times[1] - server.times[0] >= 0.2


def test_a_slow_answer_times_out_and_is_retried(server: "Server", judge: Callable[..., Judge]) -> None:
    server.seconds = 0.5
    (message,) = failures(judge(request_timeout=0.1, attempts=2)(pictures(1), ["p"]))
    assert message == f"{server.url}/chat/completions did not answer within 0.1 s (2 attempts)"
    assert len(server.bodies) == 2


def test_an_untrusted_certificate_is_not_retried(
    judge: Callable[..., Judge], server: "Server", monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def distrust(client: httpx.AsyncClient, url: str, json: Any) -> httpx.Response:
        asked.append(url)
        raise httpx.ConnectError("certificate verify failed") from ssl.SSLCertVerificationError()

    monkeypatch.setattr(httpx.AsyncClient, "post", distrust)
    (error,) = judge(server.url, attempts=3)(pictures(1), ["p"])
    assert "certificate verify failed" in str(error)
    assert len(asked) == 1
