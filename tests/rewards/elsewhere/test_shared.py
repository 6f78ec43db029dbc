"""The ranks of a machine share the server of an isolated reward; here every rank is an object."""

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from marble_cli.config.schema import RewardConfig
from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import ConfigError, RewardError
from marble_cli.rewards.api import Batch, Declaration
from marble_cli.rewards.builtin.colorfulness import colorfulness
from marble_cli.rewards.elsewhere import shared
from marble_cli.rewards.elsewhere.meeting import Machine, meeting
from marble_cli.rewards.elsewhere.shared import SharedServer
from marble_cli.rewards.guard import Guard
from marble_cli.rewards.registry import Reward
from marble_cli.rewards.worker import RewardWorker
from tests.distributed.processes import forks, inside, wait_for

SETTINGS = RewardConfig(plugin="colorfulness", isolated=True, timeout=60.0)
HERE = [sys.executable, "-m", "marble_cli", "rewards", "serve", "--stdin"]


@pytest.fixture
def fork(tmp_path: Path) -> list[str]:
    """The command of a server in a fork; `HERE` is that of an interpreter, which a test kills."""
    forks().write_python(tmp_path / "python")
    return [str(tmp_path / "python"), *HERE[1:]]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fork: list[str]) -> Machine:
    """A meeting place; servers run in this environment instead of an isolated one."""
    monkeypatch.setattr(shared, "serve_command", lambda plugin: fork)
    folder = tmp_path / "machine"
    folder.mkdir()
    return Machine(folder, "cpu")


def batch(seed: int) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    return Batch(torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8, generator=draw), [""] * 3, [{}] * 3)


def expected(seed: int) -> Tensor:
    return torch.as_tensor(colorfulness(batch(seed).images)).double()


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def pid(machine: Machine) -> int:
    serving = SharedServer.__new__(SharedServer)
    serving.folder = machine.folder / "mine"
    found = serving._read()
    assert found is not None
    return found.pid


@pytest.fixture
def marble_logs(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("marble"), "propagate", True)
    caplog.set_level(logging.WARNING, "marble")
    return caplog


def test_ranks_share_a_server_that_is_replaced_once_and_ends_with_the_last(
    machine: Machine,
    fork: list[str],
    marble_logs: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = RewardConfig(plugin="colorfulness", isolated=True, options={"no_such": 1})
    for _ in range(2):  # a reward that cannot be built is refused on every rank, and leaves nothing
        with pytest.raises(ConfigError, match=r"isolated reward mine: .*no_such"):
            SharedServer("mine", wrong, machine, "rewards.mine").start()
        wait_for(lambda: list(inside(tmp_path)) == [os.getpid()], "the fork's end")
    commands = iter([HERE])
    monkeypatch.setattr(shared, "serve_command", lambda plugin: next(commands, fork))
    ranks = [
        RewardWorker("mine", SETTINGS, SharedServer("mine", SETTINGS, machine, "rewards.mine").start)
        for _ in range(3)
    ]
    first = pid(machine)

    def scores(rank: RewardWorker, seed: int) -> bool:
        return torch.allclose(rank.attempt(batch(seed))[""][0], expected(seed))

    with ThreadPoolExecutor(3) as pool:  # calls at once: every rank gets the scores of its own images
        assert all(pool.map(scores, ranks * 5, range(15)))
    os.kill(first, signal.SIGKILL)
    assert gone(first)
    for seed, rank in enumerate(ranks):
        values = rank.score(batch(seed), [""] * 3, [True] * 3)  # with retries
        assert torch.allclose(values.values, expected(seed))
    second = pid(machine)
    assert second != first
    assert marble_logs.text.count("reward mine: restart 1 of its server") == 1
    assert "restart 2" not in marble_logs.text
    for rank in ranks[1:]:
        rank.close()
    assert torch.allclose(ranks[0].score(batch(7), [""] * 3, [True] * 3).values, expected(7))
    ranks[0].close()
    assert gone(second)
    assert not list(machine.folder.iterdir())


def test_a_server_that_another_rank_restarted_and_that_died_is_restarted(
    machine: Machine, serve: Callable[..., str], marble_logs: pytest.LogCaptureFixture
) -> None:
    server = SharedServer("mine", SETTINGS, machine, "rewards.mine")

    def restarted(number: int, url: str) -> None:
        nobody = 1 << 30  # no process has this id
        serving = shared.Serving(number, nobody, url, "secret")
        (server.folder / "server.json").write_text(json.dumps(asdict(serving)))

    restarted(1, serve({"mine": RewardConfig(plugin="colorfulness")}, token="secret"))
    rank = RewardWorker("mine", SETTINGS, server.start)
    assert torch.allclose(rank.score(batch(0), [""] * 3, [True] * 3).values, expected(0))
    restarted(2, "http://127.0.0.1:9")
    assert torch.allclose(rank.score(batch(1), [""] * 3, [True] * 3).values, expected(1))
    assert "reward mine: restart 2 of its server" in marble_logs.text
    rank.close()


def test_no_server_is_left_when_all_ranks_are_killed(
    machine: Machine, fork: list[str], tmp_path: Path
) -> None:
    program = tmp_path / "rank.py"
    program.write_text(f"""
import sys, time
from pathlib import Path
from marble_cli.config.schema import RewardConfig
from marble_cli.rewards.elsewhere import shared
from marble_cli.rewards.elsewhere.meeting import Machine
shared.serve_command = lambda plugin: {fork!r}
settings = RewardConfig(plugin="colorfulness", isolated=True)
server = shared.SharedServer("mine", settings, Machine(Path({str(machine.folder)!r}), "cpu"), "rewards.mine")
server.start()
print("ready", flush=True)
time.sleep(3600)
""")
    ranks = [forks().start([program], os.environ) for _ in range(2)]
    try:
        for out in [rank.folder / "out" for rank in ranks]:
            wait_for(lambda out=out: out.exists() and out.read_text() == "ready\n", "a rank")
        server = pid(machine)
        ranks[0].kill()
        ranks[0].wait(10)
        time.sleep(0.3)
        assert Path(f"/proc/{server}").exists()  # the other rank still uses the server
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait(10)
    assert gone(server)


def test_no_rank_has_two_turns_while_another_waits(machine: Machine) -> None:
    one, other = (SharedServer("mine", SETTINGS, machine, "rewards.mine") for _ in range(2))
    order: list[str] = []
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        with other.turn():
            order.append("other")

    def wait_in_vain() -> None:
        with pytest.raises(RewardError, match="was closed"), other.turn():
            pass

    with one.turn():
        thread = threading.Thread(target=wait)
        thread.start()
        waiting.wait()
        time.sleep(5 * shared.POLL)
    with one.turn():
        order.append("one")
    thread.join()
    assert order == ["other", "one"]
    with one.turn():
        thread = threading.Thread(target=wait_in_vain)
        thread.start()
        other.stop()  # a rank that leaves waits no longer
        thread.join(5)
        assert not thread.is_alive()
    one.stop()


def test_timeout_begins_with_the_turn() -> None:
    """The turn comes after three times the timeout; the call itself is in time."""

    @contextmanager
    def turn() -> Iterator[None]:
        time.sleep(0.6)
        yield

    def call(batch: Batch) -> Tensor:
        return torch.zeros(3)

    reward = Reward("late", Declaration(), call, Guard("late"), turn=turn)
    make: Callable[[], Reward] = lambda: reward  # noqa: E731
    worker = RewardWorker("late", RewardConfig(plugin="late", timeout=0.2, retries=0), make)
    assert worker.score(batch(0), [""] * 3, [True] * 3).values.tolist() == [[0.0] * 3]
    worker.close()


def test_a_rank_alone_on_its_machine_shares_nothing() -> None:
    for rewards in ({}, {"mine": SETTINGS}):
        with meeting(Ranks.alone(), rewards, "cpu") as place:
            assert place is None
