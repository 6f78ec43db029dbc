"""Signals, forks, threads and exits of a plugin do not reach the run, and Ctrl+C does."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from marble_cli.config.schema import RewardConfig
from marble_cli.errors import ConfigError, RewardError
from marble_cli.interrupts import Interrupt
from marble_cli.rewards.conformance import Outcome, run_checks
from marble_cli.rewards.registry import build, load_plugin
from marble_cli.rewards.scorer import Scorer, Scores, open_scorer
from marble_cli.rewards.testing.samples import sample_batch
from tests.distributed.processes import ends, forks

Write = Callable[..., str]
POOL = """
with multiprocessing.get_context('fork').Pool(2) as pool:
    assert pool.map(abs, [-1, 2]) == [1, 2]
"""


def score(scorer: Scorer) -> Scores:
    pictures = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    return scorer.submit(pictures, ["a", "b"], [{}, {}], ["", ""]).result()


@pytest.fixture
def interrupt() -> Iterator[Interrupt]:
    with Interrupt() as interrupt:
        yield interrupt


@pytest.mark.parametrize("stage", ["imported", "built"])
@pytest.mark.parametrize(
    "change",
    [
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))",
        "signal.signal(signal.SIGINT, signal.default_int_handler)",
        "signal.signal(signal.SIGUSR1, signal.SIG_DFL)",
        "signal.signal(signal.SIGHUP, lambda *_: None)",
        "signal.signal(signal.SIGPIPE, signal.SIG_DFL)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])",
    ],
)
def test_a_plugin_cannot_replace_the_run_s_signal_handlers(
    write: Write, interrupt: Interrupt, caplog: pytest.LogCaptureFixture, stage: str, change: str
) -> None:
    kept = [signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGPIPE)]
    name = write(**{stage: change})
    build(name, name, {}, "cpu")
    os.kill(os.getpid(), signal.SIGTERM)
    assert interrupt.exit_code == 143
    assert [signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGPIPE)] == kept
    assert f"reward {name}, when it was {stage}, changed the handling of signals (" in caplog.text


def test_arming_again_restores_the_handlers_of_the_run(interrupt: Interrupt) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    interrupt.arm()
    os.kill(os.getpid(), signal.SIGTERM)
    assert interrupt.exit_code == 143


@pytest.mark.parametrize("stage", ["imported", "built", "called"])
def test_a_reward_may_use_a_pool_of_processes(write: Write, interrupt: Interrupt, stage: str) -> None:
    name = write(**{stage: POOL})
    with open_scorer({name: RewardConfig(plugin=name, timeout=60, retries=0)}, "cpu") as scorer:
        assert score(scorer).applicable.all(), scorer.workers[0].error
    assert interrupt.exit_code is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_a_child_and_not_the_run(
    write: Write, interrupt: Interrupt, number: signal.Signals
) -> None:
    called = f"""
    heard, told = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(told, b"!")
            time.sleep(60)
        finally:
            os._exit(9)
    os.read(heard, 1)
    os.kill(child, {int(number)})
    seen.append(os.waitpid(child, 0)[1])
    """
    name = write(called=called, imported="seen = []")
    with open_scorer({name: RewardConfig(plugin=name, timeout=60, retries=0)}, "cpu") as scorer:
        assert score(scorer).applicable.all(), scorer.workers[0].error
    [status] = sys.modules[name].seen
    expected = {signal.SIGINT: 9 << 8}  # KeyboardInterrupt, and what the child does then
    assert status == expected.get(number, int(number))
    assert interrupt.exit_code is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_that_arrives_during_a_fork_ends_the_child(
    interrupt: Interrupt, number: signal.Signals
) -> None:
    """A pool signals its workers when it ends, which may be before they have begun."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    for _ in range(5):  # a fork of a process with so much memory is slow, so the signal is always earlier
        child = os.fork()
        if not child:
            time.sleep(5)
            os._exit(9)
        os.kill(child, number)
        assert os.waitpid(child, 0)[1] == number
    assert interrupt.exit_code is None
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_a_handler_that_a_child_has_kept_acts_as_before(interrupt: Interrupt) -> None:
    """As in a child that a C library has forked, of which Python is not told."""
    child = os.fork()
    if not child:
        interrupt.arm()
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(9)
    assert os.waitpid(child, 0)[1] == signal.SIGTERM
    assert interrupt.exit_code is None


@pytest.mark.parametrize(
    ("code", "status"),
    [("pass", 0), ("sys.exit()", 0), ("sys.exit(3)", 3), ("raise ValueError('in the child')", 1)],
)
@pytest.mark.parametrize("stage", ["built", "called"])
def test_a_forked_child_ends_with_the_plugin_s_code(write: Write, stage: str, code: str, status: int) -> None:
    work = f"child = os.fork()\nif child:\n    seen.append(os.waitpid(child, 0)[1])\nelse:\n    {code}"
    name = write(**{stage: work}, imported="seen = []")
    with open_scorer({name: RewardConfig(plugin=name, timeout=60, retries=0)}, "cpu") as scorer:
        assert score(scorer).applicable.all(), scorer.workers[0].error
    assert sys.modules[name].seen == [status << 8]


@pytest.mark.parametrize(
    "code", ["raise KeyboardInterrupt", "raise SystemExit(3)", "raise GeneratorExit", "exit()"]
)
def test_an_exit_is_the_reward_s_failure(write: Write, code: str) -> None:
    with pytest.raises(RewardError, match="cannot be imported: RuntimeError"):
        load_plugin(write(imported=code))
    name = write(built=code)
    with pytest.raises(RewardError, match="could not be built: RuntimeError"):
        build(name, name, {}, "cpu")
    name = write(called=code)
    with open_scorer({name: RewardConfig(plugin=name, retries=0)}, "cpu") as scorer:
        assert score(scorer).failed.all()
    [first, *_] = run_checks(build(name, name, {}, "cpu"), sample_batch(()))
    assert first.outcome is Outcome.FAIL


@pytest.mark.parametrize("stage", ["imported", "built"])
def test_ctrl_c_during_a_build_interrupts(write: Write, stage: str) -> None:
    name = write(**{stage: "os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(1)"})
    with pytest.raises(KeyboardInterrupt):
        build(name, name, {}, "cpu")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_of_a_build_is_in_the_message(write: Write) -> None:
    name = write(built="raise OSError('no weights')")
    with pytest.raises(ConfigError, match="no weights"):
        build(name, name, {}, "cpu")


def test_a_plugin_cannot_write_into_its_options(write: Write) -> None:
    source = """
class Reward:
    def __init__(self, words):
        words.append("more")
    def __call__(self, prompts):
        return [1.0] * len(prompts)
"""
    name, options = write(source), {"words": ["a"]}
    build(name, name, options, "cpu")
    assert options == {"words": ["a"]}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ({"called": "signal.signal(signal.SIGALRM, signal.SIG_DFL)"}, "signal only works in main thread"),
        ({"called": "import asyncio; asyncio.get_event_loop()"}, "no current event loop in thread"),
        (
            {
                "built": "import sqlite3; self.db = sqlite3.connect(':memory:')",
                "called": "self.db.execute('select 1')",
            },
            "created in a thread can only be used in that same thread",
        ),
    ],
)
def test_a_reward_that_needs_the_main_thread_fails_its_check(
    write: Write, code: dict[str, str], said: str
) -> None:
    name = write(**code)
    [first, *_] = run_checks(build(name, name, {}, "cpu"), sample_batch(()))
    assert first.outcome is Outcome.FAIL
    assert said in first.detail
    assert "A run builds a reward in its main thread, and calls it in another" in first.detail


def test_a_reward_may_keep_what_belongs_to_the_thread_of_its_calls(write: Write) -> None:
    called = """
    import sqlite3, asyncio
    if not hasattr(self, 'db'):
        self.db = sqlite3.connect(':memory:')
    self.db.execute('select 1')
    asyncio.run(asyncio.sleep(0))
    """
    name = write(called=called)
    checks = run_checks(build(name, name, {}, "cpu"), sample_batch(()))
    assert not [check for check in checks if check.outcome is Outcome.FAIL]


POOLED = """
import multiprocessing
class Reward:
    def __init__(self):
        self.pool = multiprocessing.get_context("fork").Pool(2)
    def __call__(self, prompts):
        with multiprocessing.get_context("fork").Pool(2) as pool:
            workers = [worker.pid for worker in (*pool._pool, *self.pool._pool)]
            assert pool.map(float, ["1.0"]) == [1.0]
        open("workers", "w").write(" ".join(map(str, workers)))
        return self.pool.map(float, ["1.0"] * len(prompts))
"""


@pytest.fixture
def pooled(tmp_path: Path) -> Path:
    """A folder in which Python finds the installed reward `pooled`, which has processes of its own."""
    (tmp_path / "pooled.py").write_text(POOLED)
    offered = tmp_path / "pooled-1.0.dist-info"
    offered.mkdir()
    (offered / "METADATA").write_text("Metadata-Version: 2.1\nName: pooled\nVersion: 1.0\n")
    (offered / "entry_points.txt").write_text("[marble.rewards]\npooled = pooled:Reward\n")
    return tmp_path


def none_is_left(folder: Path) -> None:
    workers = (folder / "workers").read_text().split()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "a worker is still there"
    assert len(workers) == 4


def test_a_process_whose_reward_has_pools_ends_with_its_workers(pooled: Path) -> None:
    """The server of the next test is a process of its own, from its imports to the end of the interpreter."""
    program = pooled / "program.py"
    program.write_text("""
import torch
from marble_cli.config.schema import RewardConfig
from marble_cli.rewards.scorer import open_scorer
from marble_cli.interrupts import Interrupt
settings = RewardConfig(plugin="pooled", timeout=60, retries=0)
with Interrupt(), open_scorer({"pooled": settings}, "cpu") as scorer:
    scores = scorer.submit(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), [""], [{}], [""]).result()
    assert scores.applicable.all(), scorer.workers[0].error
""")
    ((code, _, said),) = ends([forks().start([program], os.environ, pooled)])
    assert code == 0, said
    none_is_left(pooled)


def test_a_server_whose_reward_has_pools_scores_and_ends(
    pooled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MARBLE_REWARD_TOKEN", raising=False)
    command = [sys.executable, "-m", "marble_cli", "rewards", "serve", "pooled"]
    with subprocess.Popen(
        command, cwd=pooled, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        with open_scorer(
            {"far": RewardConfig(plugin="pooled", url=url, timeout=60, retries=0)}, "cpu"
        ) as scorer:
            assert score(scorer).applicable.all(), scorer.workers[0].error
        server.terminate()
        assert server.wait(30) == 143
    none_is_left(pooled)
