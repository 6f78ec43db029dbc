"""The contract of rewards, held by `judge`."""

import base64
import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from marble_cli.rewards.conformance import RewardConformance

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
