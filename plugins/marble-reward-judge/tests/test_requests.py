"""The requests that judges send: question, picture, settings, and how many at once."""

import base64
import hashlib
import io
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from marble_reward_judge.judge import Judge
from marble_reward_judge.unifiedreward import QUESTION, UnifiedReward
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from conftest import Server

Reply = tuple[int, Mapping[str, str], str]


def pictures(count: int, height: int = 24, width: int = 36) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def decoded(body: dict[str, Any]) -> np.ndarray:
    """Return the picture in a request: [H, W, 3]."""
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    head, data = url.split(",", 1)
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data)), formats=["PNG"]))


def test_request_holds_model_question_and_picture(server: "Server") -> None:
    assert UnifiedReward(server.url)(pictures(1), ["a red {cube}"]) == [0.8]
    (body,) = server.bodies
    assert server.paths == ["/v1/chat/completions"]
    assert {key: body[key] for key in ("model", "temperature", "max_tokens")} == {
        "model": "UnifiedReward-7b-v1.5",
        "temperature": 0,
        "max_tokens": 512,
    }
    (message,) = body["messages"]
    assert message["role"] == "user"
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]
    assert message["content"][1]["text"] == QUESTION.replace("{prompt}", "a red {cube}")
    assert "Authorization" not in server.headers[0]


def test_question_of_unifiedreward_is_the_published_one() -> None:
    """Compares the SHA-256 of the text in Flow-GRPO's and MARBLE's rewards, with {prompt} in its place."""
    digest = hashlib.sha256(QUESTION.encode()).hexdigest()
    assert digest == "d68ab1dcf4dc3a39ec5dfab963d17fe30a6e5f713eb49f743ed88a4c8ce4317f"


def test_pictures_arrive_unchanged(server: "Server", judge: Callable[..., Judge]) -> None:
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
def test_simultaneous_requests_are_bounded_by_concurrency(
    server: "Server", judge: Callable[..., Judge], concurrency: int
) -> None:
    server.seconds = 0.03
    assert judge(concurrency=concurrency)(pictures(8), ["p"] * 8) == [0.4] * 8
    assert server.most == concurrency


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
def test_settings_and_extra_body_reach_the_server(
    judge: Callable[..., Judge], server: "Server", options: dict[str, Any], sent: dict[str, Any]
) -> None:
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
def test_extra_body_must_be_json_and_leave_the_judges_keys(
    judge: Callable[..., Judge], server: "Server", extra: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        judge(server.url, extra_body=extra)
