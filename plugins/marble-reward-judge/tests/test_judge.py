"""The judges against a server on the loopback."""

import base64
import hashlib
import io
import json
import socket
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import tenacity
import torch
from marble_reward_judge import chat
from marble_reward_judge.chat import Answer, ServerError
from marble_reward_judge.judge import Judge
from marble_reward_judge.score import ScoreReader, UnreadableAnswerError
from marble_reward_judge.unifiedreward import QUESTION, UnifiedReward
from PIL import Image
from torch import Tensor

from marble_cli.config.schema import RewardConfig
from marble_cli.errors import RewardError
from marble_cli.rewards.conformance import RewardConformance
from marble_cli.rewards.scorer import open_scorer

if TYPE_CHECKING:
    from conftest import Server

Reply = tuple[int, Mapping[str, str], str]


def pictures(count: int, height: int = 24, width: int = 36) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def decoded(body: dict[str, Any]) -> np.ndarray:
    """The picture in a request: [H, W, 3]."""
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    head, data = url.split(",", 1)
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data)), formats=["PNG"]))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "BACK_OFF", tenacity.wait_none())


@pytest.fixture
def judge(server: "Server") -> Callable[..., Judge]:
    """Builds a judge that asks the server."""

    def build(**options: Any) -> Judge:
        given = {"template": "Rate: {prompt}", "pattern": r"(\d+)", "low": 0, "high": 10, **options}
        return Judge(server.url, "a-model", **given)

    return build


def failures(scores: list[Any]) -> list[str | None]:
    """The message of each failure, None for a score."""
    return [str(score) if isinstance(score, Exception) else None for score in scores]


def test_the_request(server: "Server") -> None:
    assert UnifiedReward(server.url)(pictures(1), ["a red {cube}"]) == [0.8]
    (body,) = server.bodies
    assert server.paths == ["/v1/chat/completions"]
    assert {key: body[key] for key in ("model", "temperature", "max_tokens")} == {
        "model": "UnifiedReward-7b-v1.5", "temperature": 0, "max_tokens": 512
    }  # fmt: skip
    (message,) = body["messages"]
    assert message["role"] == "user"
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]
    assert message["content"][1]["text"] == QUESTION.replace("{prompt}", "a red {cube}")
    assert "Authorization" not in server.headers[0]


def test_the_question_is_the_published_one() -> None:
    """The SHA-256 of the text in Flow-GRPO's and MARBLE's rewards, with {prompt} left in."""
    digest = hashlib.sha256(QUESTION.encode()).hexdigest()
    assert digest == "d68ab1dcf4dc3a39ec5dfab963d17fe30a6e5f713eb49f743ed88a4c8ce4317f"


def test_pictures_arrive_to_the_last_bit(server: "Server", judge: Callable[..., Judge]) -> None:
    images = pictures(3)
    judge(concurrency=1)(images, ["0", "1", "2"])
    assert [server.question(i) for i in range(3)] == ["Rate: 0", "Rate: 1", "Rate: 2"]
    for image, body in zip(images, server.bodies, strict=True):
        assert np.array_equal(decoded(body), image.permute(1, 2, 0).numpy())


def test_scores_come_in_the_order_of_the_pictures(server: "Server", judge: Callable[..., Judge]) -> None:
    def reply(body: dict[str, Any], number: int) -> Reply:
        wanted = int(body["messages"][0]["content"][1]["text"].split()[-1])
        time.sleep(0.01 * (8 - wanted))  # later ones answer first
        return server.says(f"I say {wanted}")

    server.reply = reply
    prompts = [str(i) for i in range(8)]
    assert judge(concurrency=8)(pictures(8), prompts) == [i / 10 for i in range(8)]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_never_more_requests_than_allowed(
    server: "Server", judge: Callable[..., Judge], concurrency: int
) -> None:
    server.seconds = 0.03
    assert judge(concurrency=concurrency)(pictures(8), ["p"] * 8) == [0.4] * 8
    assert server.most == concurrency


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_fault_is_tried_again(server: "Server", judge: Callable[..., Judge], status: int) -> None:
    server.reply = lambda body, number: (status, {}, "busy") if number < 2 else server.says("7")
    assert judge(attempts=3)(pictures(1), ["p"]) == [0.7]
    assert len(server.bodies) == 3


@pytest.mark.parametrize("status", [429, 502])
def test_a_fault_that_does_not_pass_fails_its_picture(
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


def test_retry_after_is_honoured(server: "Server", judge: Callable[..., Judge]) -> None:
    server.reply = lambda body, number: server.says("7") if number else (429, {"Retry-After": "0.25"}, "")
    assert judge()(pictures(1), ["p"]) == [0.7]
    assert 0.25 <= server.times[1] - server.times[0] < 1


@pytest.mark.parametrize("asked", ["86400", "inf"])
def test_a_server_that_asks_for_a_day_gets_a_minute(asked: str) -> None:
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.set_exception((None, chat._PassingError("busy", chat._retry_after(asked)), None))
    assert chat._pause(state) == 60


def test_retry_after_may_be_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert chat._retry_after(later) == pytest.approx(90, abs=2)
    assert chat._retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert chat._retry_after("12") == 12
    assert chat._retry_after("soon") is None
    assert chat._retry_after(None) is None


def test_it_backs_off(server: "Server", judge: Callable[..., Judge], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "BACK_OFF", tenacity.wait_fixed(0.2))
    server.reply = lambda body, number: server.says("7") if number else (500, {}, "")
    judge()(pictures(1), ["p"])
    assert server.times[1] - server.times[0] >= 0.2


def test_a_slow_answer_is_given_up(server: "Server", judge: Callable[..., Judge]) -> None:
    server.seconds = 0.5
    (message,) = failures(judge(request_timeout=0.1, attempts=2)(pictures(1), ["p"]))
    assert message == f"{server.url}/chat/completions did not answer within 0.1 s (2 attempts)"
    assert len(server.bodies) == 2


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    (message,) = failures(UnifiedReward(url, attempts=2)(pictures(1), ["p"]))
    assert message is not None
    assert message.startswith(f"{url}/chat/completions cannot be reached: ")
    assert message.endswith("(2 attempts)")


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (401, "Set api_key_env"),
        (403, "Set api_key_env"),
        (404, "Check base_url, which usually ends in /v1, and model"),
    ],
)
def test_a_refusal_concerns_the_whole_batch_and_is_not_tried_again(
    server: "Server", judge: Callable[..., Judge], status: int, remedy: str
) -> None:
    server.reply = lambda body, number: (status, {}, "no")
    with pytest.raises(ServerError, match=f"answered {status}: 'no'.*{remedy}"):
        judge(concurrency=1)(pictures(3), ["p"] * 3)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((400, {}, "too long"), "answered 400: 'too long'"),
        ((200, {}, "<html>"), "which is no chat completion"),
        ((200, {}, '{"choices": []}'), "which is no chat completion"),
        ((200, {}, '{"choices": [{"message": {"content": null}}]}'), "which has no text"),
    ],
)
def test_other_faults_fail_one_picture_and_are_not_tried_again(
    server: "Server", judge: Callable[..., Judge], reply: Reply, message: str
) -> None:
    server.reply = lambda body, _: server.says("3") if "good" in str(body["messages"]) else reply
    scores = judge()(pictures(2), ["good", "bad"])
    assert scores[0] == 0.3
    assert isinstance(scores[1], ServerError)
    assert message in str(scores[1])
    assert len(server.bodies) == 2


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


def test_an_answer_without_a_score_fails_its_picture_alone(server: "Server") -> None:
    """Through the host: two scores, one failure, and the reason is told."""
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


PATTERN = r"Score: (-?\d+(?:\.\d+)?)"


@pytest.mark.parametrize(
    ("text", "score"),
    [("Score: 3", 3), ("Score: 1 at first, but then\nScore: 4.5/5", 4.5), ("**Score: 2**", 2)],
)
def test_reads_a_score_by_pattern(text: str, score: float) -> None:
    assert ScoreReader(PATTERN, None, 1, 5)(Answer(text, False)) == score


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"score": 3, "why": "{}"}', 3),
        ('Here:\n```json\n{"why": "x", "score": 4.5}\n```', 4.5),
        ('{"score": "2"}', 2),
    ],
)
def test_reads_a_score_by_key(text: str, score: float) -> None:
    assert ScoreReader(None, "score", 1, 5)(Answer(text, False)) == score


@pytest.mark.parametrize(
    ("reader", "answer", "message"),
    [
        ((PATTERN, None), Answer("nothing", False), "the answer has no score: 'nothing'"),
        ((PATTERN, None), Answer("Well, let me", True), "was cut at max_tokens before it had a score"),
        ((PATTERN, None), Answer("Score: 7", False), "the score 7 is not on the scale from 1 to 5"),
        ((PATTERN, None), Answer("Score: -3", False), "the score -3 is not on the scale"),
        ((None, "score"), Answer("nothing", False), "has no score"),
        ((None, "score"), Answer('{"score": 3', True), "was cut"),
        ((None, "score"), Answer('{"mark": 3}', False), "has no score"),
        ((None, "score"), Answer('{"score": true}', False), "has no score"),
        ((None, "score"), Answer('{"score": null}', False), "has no score"),
        ((None, "score"), Answer('{"score": NaN}', False), "is not on the scale"),
        ((None, "score"), Answer(f'{{"score": 1{"0" * 400}}}', False), "has no score"),
    ],
)
def test_what_has_no_score_is_an_error(reader: tuple[Any, Any], answer: Answer, message: str) -> None:
    with pytest.raises(UnreadableAnswerError, match=message):
        ScoreReader(*reader, 1, 5)(answer)


def test_no_scale_is_no_licence() -> None:
    with pytest.raises(UnreadableAnswerError, match="the score inf is not on the scale from -inf to inf"):
        ScoreReader(None, "score", None, None)(Answer('{"score": Infinity}', False))


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Final Score: 1", 0.2),
        ("Final Score: 5", 1.0),
        ("**Final Score:** 3.65", 0.73),
        ("Final Score: 4/5", 0.8),
    ],
)
def test_unifiedreward_divides_by_five(server: "Server", text: str, score: float) -> None:
    server.reply = lambda body, number: server.says(f"cube (object): 1\n{text}")
    assert UnifiedReward(server.url)(pictures(1), ["p"]) == pytest.approx([score])


def test_unifiedreward_takes_no_score_off_its_scale(server: "Server") -> None:
    server.reply = lambda body, number: server.says("Final Score: 10")  # the published pattern reads 1
    (message,) = failures(UnifiedReward(server.url)(pictures(1), ["p"]))
    assert message == "the score 10 is not on the scale from 1 to 5: 'Final Score: 10'"


def test_a_scale_is_mapped_or_left(server: "Server", judge: Callable[..., Judge]) -> None:
    server.reply = lambda body, number: server.says("4")
    assert judge(low=2, high=10)(pictures(1), ["p"]) == [0.25]
    assert judge(low=2, high=10, raw=True)(pictures(1), ["p"]) == [4.0]
    assert judge(low=None, high=None, raw=True)(pictures(1), ["p"]) == [4.0]
    assert judge(low=2, high=10, raw=True).range == (2, 10)
    assert judge().range == (0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "Rate it"}, "expected {prompt} where the prompt belongs"),
        ({"json_key": "score"}, "give one of pattern"),
        ({"pattern": None}, "give one of pattern"),
        ({"pattern": "("}, "is no regular expression"),
        ({"pattern": r"\d"}, "has 0 groups: expected one"),
        ({"low": None}, "give low and high, the judge's scale, or raw=true"),
        ({"low": 5, "high": 5}, "expected low < high"),
        ({"concurrency": 0}, "concurrency=0: expected a whole number from 1 on"),
        ({"attempts": 0}, "attempts=0"),
    ],
)
def test_options_of_no_use_are_refused(
    judge: Callable[..., Judge], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        judge(**options)


def test_an_address_is_one() -> None:
    with pytest.raises(ValueError, match="base_url='localhost:8000': expected an address such as http"):
        UnifiedReward("localhost:8000")


class TestJudgeConformance(RewardConformance):
    """On a judge that scores by the picture's mean brightness."""

    plugin = "judge"
    options: ClassVar[Mapping[str, Any]]

    @pytest.fixture(autouse=True)
    def _server(self, server: "Server") -> None:
        server.reply = lambda body, _: server.says(
            json.dumps({"score": round(float(decoded(body).mean()) / 25.5, 3)})
        )
        type(self)._built.pop(type(self), None)  # each test has a server of its own
        type(self).options = {
            "base_url": server.url, "model": "m", "template": "{prompt}", "json_key": "score", "low": 0, "high": 10,
        }  # fmt: skip
