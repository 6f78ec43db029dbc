"""Secrets of rewards in other processes are hidden, and checked before anything is loaded."""

import os
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch

from marble_cli.config.schema import RewardConfig
from marble_cli.errors import ConfigError
from marble_cli.rewards.elsewhere.locate import declare, maker
from tests.redaction.samples import SECRET


@pytest.mark.parametrize("each", [True, False])
def test_server_responses_show_no_secret(monkeypatch: pytest.MonkeyPatch, each: bool) -> None:
    from fastapi.testclient import TestClient

    from marble_cli.rewards.api import Batch
    from marble_cli.rewards.elsewhere import protocol
    from marble_cli.rewards.elsewhere.server import Limits, build_app
    from marble_cli.rewards.worker import RewardWorker

    class Mine:
        """Fail with an error that contains the key."""

        def __init__(self, api_key: str) -> None:
            self.error = RuntimeError(f"not with {api_key}")

        def __call__(self, images: object) -> list[Exception]:
            if each:
                return [self.error]
            raise self.error

    known = {"mine": EntryPoint("mine", "x:y", "marble.rewards")}
    monkeypatch.setattr("marble_cli.rewards.registry.installed", lambda: known)
    monkeypatch.setattr(EntryPoint, "load", lambda entry: Mine)
    settings = RewardConfig(plugin="mine", options={"api_key": SECRET})
    lane = RewardWorker("mine", settings, maker("mine", settings, "cpu"))
    batch = protocol.pack_batch(Batch(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), ["a"], [{}]))
    answer = TestClient(build_app({"mine": lane}, {"mine": ""}, None, Limits())).post(
        "/score/mine", content=batch
    )
    lane.close()
    assert answer.status_code == (200 if each else 500)
    assert b"not with ***" in answer.content
    assert SECRET.encode() not in answer.content


BAD_KEYS = [
    f" {SECRET}",
    f"{SECRET} ",
    f"{SECRET}\n",
    f"{SECRET}\r\n",
    "zyxw 98",
    "zyxw\t98",
    "zyxw\x1b98",
    "zyxwé",
    "\ufeffzyxw",
    "zyxw\u2028",
]


@pytest.mark.parametrize("key", [*BAD_KEYS, None])
def test_invalid_judge_key_is_refused_before_loading(key: str | None) -> None:
    """A dry run and `train` check the key first; the plugin's tests cover the judge's own check."""
    os.environ.pop("JUDGE_KEY", None)
    if key is not None:
        os.environ["JUDGE_KEY"] = key
    settings = RewardConfig(plugin="judge", options={"api_key_env": "JUDGE_KEY"})
    for look in (lambda: declare("mine", settings), lambda: maker("mine", settings, "cpu")):
        with pytest.raises(
            ConfigError, match=r"rewards.mine.api_key_env: the environment variable JUDGE_KEY"
        ) as told:
            look()
        assert "zyxw" not in str(told.value)
        assert ("is not set" in str(told.value)) == (key is None)


@pytest.mark.parametrize(
    "token", [f"{SECRET} ", f"{SECRET}\n", f"\t{SECRET}", "zyxwé", "zyxw\x1b98", "zyxw\u200b"]
)
@pytest.mark.parametrize("given", [{}, {"token_env": "OF_MINE"}])
def test_invalid_server_token_is_refused_by_its_variable(token: str, given: Mapping[str, Any]) -> None:
    from marble_cli.rewards.elsewhere.client import address

    variable = given.get("token_env", "MARBLE_REWARD_TOKEN")
    os.environ[variable] = token
    with pytest.raises(
        ConfigError, match=f"{variable} must be printable ASCII, with no space at its ends"
    ) as raised:
        address("rewards.mine", RewardConfig(plugin="mine", url="http://127.0.0.1:9", **given))
    assert "zyxw" not in str(raised.value)
