"""A call that hangs is abandoned, and its threads end."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from marble_cli.config.schema import RewardConfig
from marble_cli.errors import ConfigError, RewardError
from marble_cli.rewards.scorer import open_scorer
from tests.rewards.submission import pictures, submit

Install = Callable[..., None]


def test_a_call_that_hangs_is_retried_on_a_new_reward(install: Install, tmp_path: Path) -> None:
    install(hangs="Hangs")
    options = {"marker": str(tmp_path / "marker")}
    with open_scorer({"mine": RewardConfig(plugin="hangs", options=options, timeout=1.0)}, "cpu") as scorer:
        scores = submit(scorer, ["", ""])
        assert scores.values.tolist() == [[1, 1]]
        assert submit(scorer, [""]).applicable.all()


def test_a_call_that_always_hangs_is_masked(
    install: Install, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(hangs="Hangs", brightness="brightness")
    options = {"marker": str(tmp_path / "marker"), "once": False}
    rewards = {
        "stuck": RewardConfig(plugin="hangs", options=options, timeout=0.1, retries=1),
        "fine": RewardConfig(plugin="brightness"),
    }
    with open_scorer(rewards, "cpu") as scorer:
        scores = submit(scorer, ["", "", ""])
        assert scores.failed.tolist() == [[True] * 3, [False] * 3]
        assert scores.values[1].tolist() == [0, 1, 2]
        with pytest.raises(RewardError, match=r"reward stuck failed.*TimeoutError: no answer within 0.1 s"):
            scorer.check(scores)
    assert caplog.text.count("building it anew") == 2


def test_an_abandoned_thread_ends_when_its_call_returns(install: Install, tmp_path: Path) -> None:
    install(waits="Waits")
    marker = tmp_path / "marker"
    settings = RewardConfig(plugin="waits", options={"marker": str(marker)}, timeout=1.0, retries=0)
    with open_scorer({"late": settings}, "cpu") as scorer:
        assert submit(scorer, [""]).failed.all()
        marker.touch()
        assert submit(scorer, [""]).applicable.all()
    deadline = time.monotonic() + 10
    while any(thread.name == "call-late" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "a thread is still there"
        time.sleep(0.01)


def test_closing_does_not_wait_for_a_call_that_hangs(install: Install, tmp_path: Path) -> None:
    install(hangs="Hangs")
    options = {"marker": str(tmp_path / "marker"), "once": False}
    start = time.monotonic()
    with open_scorer({"mine": RewardConfig(plugin="hangs", options=options, timeout=600)}, "cpu") as scorer:
        pending = scorer.submit(pictures(1), [""], [{}], [""])
        while scorer.workers[0].pending_call is None:
            time.sleep(0.01)
    assert time.monotonic() - start < 30
    with pytest.raises(RewardError, match="reward mine was closed before it answered"):
        pending.result()


def test_a_command_ends_with_its_exit_code_while_a_call_computes() -> None:
    """A thread that is within torch when the interpreter ends would abort the process."""
    code = """
from importlib.metadata import EntryPoint
import torch
import marble_cli.rewards.registry as registry
from marble_cli.cli import app
from marble_cli.config.schema import RewardConfig
from marble_cli.rewards.scorer import open_scorer
registry.installed = lambda: {"computes": EntryPoint("computes", "sample_plugins:computes", "marble.rewards")}
def command():
    settings = RewardConfig(plugin="computes", timeout=0.2, retries=0)
    with open_scorer({"mine": settings}, "cpu") as scorer:
        black = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
        scorer.check(scorer.submit(black, [""], [{}], [""]).result())
app.app = command
app.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == RewardError.exit_code, done.stderr
    assert "no answer within 0.2 s" in done.stderr


@pytest.mark.parametrize("start", ["threading.Thread(target=wait).start()", "pool.submit(wait)"])
def test_a_command_ends_while_a_thread_that_a_plugin_started_goes_on(start: str) -> None:
    code = f"""
import threading
from concurrent.futures import ThreadPoolExecutor
from marble_cli.cli import app
pool, wait = ThreadPoolExecutor(1), threading.Event().wait
def command():
    {start}
    print("answer")
    raise SystemExit(3)
app.app, app.GRACE = command, 0.1
app.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (3, "answer\n"), done.stderr


def test_submit_waits_while_pending_batches_are_unfinished(install: Install, tmp_path: Path) -> None:
    install(waits="Waits", brightness="brightness")
    marker = tmp_path / "marker"
    rewards = {
        "slow": RewardConfig(plugin="waits", options={"marker": str(marker)}),
        "quick": RewardConfig(plugin="brightness"),
    }
    submitted = []
    with open_scorer(rewards, "cpu", pending=2) as scorer:

        def submit_five() -> None:
            for _ in range(5):
                submitted.append(scorer.submit(pictures(2), ["", ""], [{}, {}], ["", ""]))

        thread = threading.Thread(target=submit_five)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        assert len(submitted) == 2
        marker.touch()
        thread.join(60)
        assert not thread.is_alive()
        assert all(pending.result().applicable.all() for pending in submitted)


def test_a_reward_that_cannot_be_rebuilt_stops_the_run_at_once(install: Install) -> None:
    install(mine="LosesItsFiles")
    settings = RewardConfig(plugin="mine", timeout=0.2, retries=400)
    with (
        open_scorer({"mine": settings}, "cpu") as scorer,
        pytest.raises(RewardError, match="OSError: its weights are gone"),
    ):
        submit(scorer, ["", ""])


def test_every_worker_is_closed_if_one_cannot_be_built(install: Install) -> None:
    install(brightness="brightness", broken="Unbuildable")
    rewards = {"first": RewardConfig(plugin="brightness"), "second": RewardConfig(plugin="broken")}
    with pytest.raises(ConfigError, match="second could not be built"), open_scorer(rewards, "cpu"):
        raise AssertionError("unreachable")
    deadline = time.monotonic() + 10
    while any(thread.name == "call-first" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "a thread is still there"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _marble_logs(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests may have taken the `marble` logger's lines elsewhere."""
    monkeypatch.setattr(logging.getLogger("marble"), "propagate", True)
    caplog.set_level(logging.WARNING, "marble")
