"""`edit_judge` shows the pictures before and after an edit, in this order."""

import base64
import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import torch
from marble_reward_judge.judge import EditJudge
from PIL import Image
from torch import Tensor

from marble_cli.rewards.conformance import RewardConformance

if TYPE_CHECKING:
    from conftest import Server

ASKED: dict[str, Any] = {
    "template": "Edit: {prompt}",
    "json_key": "score",
    "low": 0,
    "high": 10,
}


def shown(body: dict[str, Any]) -> list[np.ndarray]:
    """Return the pictures in a request: [H, W, 3] each."""
    *parts, text = body["messages"][0]["content"]
    assert text["type"] == "text"
    urls = [part["image_url"]["url"].split(",", 1)[1] for part in parts]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(url)), formats=["PNG"])) for url in urls]


def pictures(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, 3, 24, 36), generator=generator, dtype=torch.uint8)


def test_the_pictures_before_come_first_and_the_instruction_last(server: "Server") -> None:
    server.reply = lambda body, _: server.says('{"score": 7}')
    after, before = pictures(0), [[one] for one in pictures(1)]
    before[2].append(before[0][0][:, ::2])
    words = ["make it red", "turn {it}", "say {prompt}"]
    assert EditJudge(server.url, "m", **ASKED, concurrency=1)(after, words, before) == [0.7] * 3
    for i, body in enumerate(server.bodies):
        for found, given in zip(shown(body), (*before[i], after[i]), strict=True):
            assert np.array_equal(found, given.permute(1, 2, 0).numpy())
        assert body["messages"][0]["content"][-1]["text"] == f"Edit: {words[i]}"


def test_following_and_keeping_are_aspects_of_one_answer(server: "Server") -> None:
    server.reply = lambda body, number: server.says(json.dumps({"following": 10 - number, "keeping": number}))
    options = {key: value for key, value in ASKED.items() if key != "json_key"}
    options["template"] = "Rate following and keeping: {prompt}"
    judge = EditJudge(server.url, "m", **options, aspects=["following", "keeping"], concurrency=1)
    assert judge(pictures(0), ["a"] * 3, [[one] for one in pictures(1)]) == {
        "following": [1.0, 0.9, 0.8],
        "keeping": [0.0, 0.1, 0.2],
    }
    assert len(server.bodies) == 3


class TestEditJudgeConformance(RewardConformance):
    """Uses a server that scores by the mean difference of the two pictures."""

    plugin = "edit_judge"
    options: ClassVar[Mapping[str, Any]]

    @pytest.fixture(autouse=True)
    def _server(self, server: "Server") -> None:
        def reply(body: dict[str, Any], number: int) -> Any:
            before, *_, after = shown(body)
            distance = np.abs(before.astype(float) - after).mean() / 25.5
            return server.says(json.dumps({"score": round(10 - distance, 3)}))

        server.reply = reply
        type(self)._built.pop(type(self), None)  # each test has a server of its own
        type(self).options = {"base_url": server.url, "model": "m", **ASKED}

    def test_needs_the_picture_before(self) -> None:
        assert self.reward().declaration.needs_conditions
