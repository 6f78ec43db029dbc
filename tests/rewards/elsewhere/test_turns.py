"""Several callers of one server wait for one another, and only a call's own time counts as its timeout."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from marble_cli.config.schema import RewardConfig
from marble_cli.rewards.api import Declaration
from marble_cli.rewards.elsewhere import client, protocol, server
from marble_cli.rewards.scorer import PendingScores, Scorer, open_scorer
from marble_cli.rewards.testing.samples import sample_batch

Serve = Callable[..., str]
BATCH = sample_batch(())


@pytest.fixture
def marker(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file that the plugin `mine` waits for in every call."""
    install(mine="Waits")
    monkeypatch.setattr(server, "BEAT_EVERY", 0.02)
    return tmp_path / "marker"


@contextmanager
def asked(url: str, **settings: Any) -> Iterator[tuple[Scorer, PendingScores]]:
    """A run that has just asked for scores, and does not retry."""
    with open_scorer({"mine": RewardConfig(plugin="mine", url=url, retries=0, **settings)}, "cpu") as scorer:
        yield scorer, scorer.submit(BATCH.images, BATCH.prompts, BATCH.metadata, [""] * 6)


def test_waiting_for_other_callers_counts_apart_and_is_bounded(
    marker: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve({"mine": RewardConfig(plugin="mine", options={"marker": str(marker)})})

    def older() -> None:
        """Ask as an older marble does, whose timeout begins at once, and leave the queue."""
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/score/mine", content=protocol.pack_batch(BATCH), timeout=0.3)

    with asked(url) as (_, first):
        older()
        with asked(url, timeout=0.5) as (_, second):
            older()
            monkeypatch.setattr(client, "QUEUE", 1)
            with asked(url, timeout=0.5) as (scorer, third):
                assert third.result().failed.all()
                assert scorer.workers[0].error == (
                    f"TimeoutError: {url}: calls of other processes have come first for 0.5 s, 1 times "
                    "rewards.mine.timeout. Raise it, or start more servers."
                )
            marker.touch()
            assert second.result().applicable.all()
            assert first.result().applicable.all()


def test_more_callers_than_a_server_has_places_for_are_all_served(
    marker: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = threading.Event()

    class Seen(client.BusyError):
        def __init__(self, message: str):
            super().__init__(message)
            refused.set()

    monkeypatch.setattr(client, "BusyError", Seen)
    monkeypatch.setattr(client, "PAUSE", 0.01)
    url = serve({"mine": RewardConfig(plugin="mine", options={"marker": str(marker)})}, waiting=1)
    with ExitStack() as stack:
        runs = [stack.enter_context(asked(url))[1] for _ in range(2)]
        assert refused.wait(20)
        monkeypatch.setattr(client, "QUEUE", 0)
        with asked(url) as (scorer, late):
            assert late.result().failed.all()
            assert scorer.workers[0].error == "Seen: 1 calls of this reward wait already"
        marker.touch()
        assert all(run.result().applicable.all() for run in runs)


def test_a_server_that_says_nothing_is_given_up_after_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at = client.Address(f"http://127.0.0.1:{silent.getsockname()[1]}", None)
        reward = client.bind("rewards.far", "far", "mine", at, Declaration(), 0.1)
        with pytest.raises(
            httpx.ReadTimeout, match=r"no answer within 0.1 s\. .*older marble.*raise rewards.far.timeout"
        ):
            reward.call(BATCH)
        reward.close()
