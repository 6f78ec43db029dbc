"""Reward servers in a thread of this process, as `marble rewards serve` runs them."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from typing import Any

import pytest
import uvicorn

from marble_cli.config.schema import RewardConfig
from marble_cli.rewards.elsewhere.locate import maker
from marble_cli.rewards.elsewhere.server import Limits, build_app
from marble_cli.rewards.worker import RewardWorker

Serve = Callable[..., str]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Serve rewards and return the URL: `serve({"name": RewardConfig(...)}, token=..., images=...)`."""
    monkeypatch.delenv("MARBLE_REWARD_TOKEN", raising=False)
    with ExitStack() as stack:

        def start(rewards: Mapping[str, RewardConfig], token: str | None = None, **limits: int) -> str:
            workers = {
                name: stack.enter_context(closing(RewardWorker(name, settings, maker(name, settings, "cpu"))))
                for name, settings in rewards.items()
            }
            app = build_app(workers, dict.fromkeys(workers, "samples 1.0"), token, Limits(**limits))
            server = uvicorn.Server(
                uvicorn.Config(app, port=0, log_level="warning", lifespan="off", ws="none")
            )
            thread = threading.Thread(target=server.run)
            thread.start()
            stack.callback(thread.join)
            stack.callback(setattr, server, "should_exit", True)
            while not server.started:
                assert thread.is_alive()
            return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

        yield start


@pytest.fixture
def at(serve: Serve) -> Callable[..., RewardConfig]:
    """Serve the plugin `mine` and return the settings of a run that uses it."""

    def make(served: Mapping[str, Any] | None = None, **asking: Any) -> RewardConfig:
        return RewardConfig(
            plugin="mine", url=serve({"mine": RewardConfig(plugin="mine", **(served or {}))}), **asking
        )

    return make
