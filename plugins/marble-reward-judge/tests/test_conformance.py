"""The contract of rewards, held by those that ask a judge; and their examples, shown to one that looks."""

import base64
import io
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from marble_cli.rewards.api import Batch
from marble_cli.rewards.conformance import RewardConformance
from marble_cli.rewards.registry import build
from marble_cli.rewards.testing.examples import prefers_its_examples
from marble_cli.rewards.testing.samples import sample_batch

if TYPE_CHECKING:
    from conftest import Server


def decoded(body: dict[str, Any]) -> np.ndarray:
    """Return the picture in a request: [H, W, 3]."""
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    head, data = url.split(",", 1)
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data)), formats=["PNG"]))


class TestJudgeConformance(RewardConformance):
    """Uses a server that scores by the mean brightness of the picture."""

    plugin = "judge"
    options: ClassVar[Mapping[str, Any]]

    @pytest.fixture(autouse=True)
    def _server(self, server: "Server") -> None:
        server.reply = lambda body, _: server.says(
            json.dumps({"score": round(float(decoded(body).mean()) / 25.5, 3)})
        )
        type(self)._built.pop(type(self), None)  # each test has a server of its own
        type(self).options = {
            "base_url": server.url,
            "model": "m",
            "template": "{prompt}",
            "json_key": "score",
            "low": 0,
            "high": 10,
        }


def look(body: dict[str, Any]) -> dict[str, Any]:
    """Answer any of the plugin's own questions by the colour and shape in the middle of the picture."""
    picture = decoded(body)
    height, width = picture.shape[:2]
    middle, corner = picture[height // 2, width // 2], picture[height * 9 // 32, width * 9 // 32]
    color = "red" if middle[0] > middle[2] else "blue"
    shape = "square" if (middle == corner).all() else "circle"
    question = body["messages"][0]["content"][1]["text"]
    if "logprobs" in body:
        word = color if "color" in question else shape
        first = {"token": word, "top_logprobs": [{"token": word, "logprob": -0.1}]}
        return {"message": {"content": word}, "finish_reason": "length", "logprobs": {"content": [first]}}
    asked = set(re.findall(r"\b(?:red|blue|circle|square)\b", question))
    score = 1 + 2 * len(asked & {color, shape})
    axes = [f"{axis} Score (1-5): {score}" for axis in ("Alignment", "Coherence", "Style")]
    text = "\n".join(["yes" if asked <= {color, shape} else "no", *axes, f"Final Score: {score}"])
    return {"message": {"content": text}, "finish_reason": "stop"}


@pytest.fixture
def looking(server: "Server") -> str:
    """Return the address of a judge that looks."""
    server.reply = lambda body, _: (200, {}, json.dumps({"choices": [look(body)]}))
    return server.url


@pytest.mark.parametrize("plugin", ["unifiedreward", "unifiedreward2"])
def test_a_judge_that_looks_prefers_the_examples(looking: str, plugin: str) -> None:
    reward = build(plugin, plugin, {"base_url": looking}, "cpu")
    assert prefers_its_examples(reward, sample_batch(())) == "2 pairs in order, 0.8 apart at least"


class _Questions(RewardConformance):
    options: ClassVar[Mapping[str, Any]]

    def batch(self) -> Batch:
        (((_, _, metadata), _),) = self.reward().plugin.examples()
        batch, first = sample_batch(()), {key: values[:1] for key, values in metadata.items()}
        return batch._replace(metadata=[first] * len(batch.prompts))

    @pytest.fixture(autouse=True)
    def _server(self, looking: str) -> None:
        type(self)._built.pop(type(self), None)  # each test has a server of its own
        type(self).options = {"base_url": looking}


class TestSoftTifaConformance(_Questions):
    plugin = "softtifa"


class TestDpgConformance(_Questions):
    plugin = "dpg"


del _Questions
