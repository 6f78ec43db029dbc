"""Which GPU and stream rewards are built and called on, on GPUs that are not there."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import torch

from marble_cli.cli.rewards.check import gpu_maker
from marble_cli.config.schema import RewardConfig
from marble_cli.policy.load import pick_device
from marble_cli.rewards.api import Batch
from marble_cli.rewards.elsewhere.locate import maker
from marble_cli.rewards.registry import build
from marble_cli.rewards.scorer import open_scorer
from marble_cli.rewards.worker import RewardWorker
from tests.rewards.submission import pictures, submit

Install = Callable[..., None]


class Cuda:
    """What torch.cuda has of current devices and streams: one of each a thread, GPU 0 to begin with."""

    def __init__(self) -> None:
        self.here = threading.local()
        self.events: list[tuple[Any, ...]] = []  # ("wait", stream, for) and ("synchronize", stream)

    def current_device(self) -> int:
        return int(getattr(self.here, "device", 0))

    def set_device(self, device: Any) -> None:
        self.here.device = torch.device(device).index

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        before = self.current_device()
        self.set_device(device)
        try:
            yield
        finally:
            self.set_device(f"cuda:{before}")

    def current_stream(self) -> Any:
        return getattr(self.here, "stream", f"default of {self.current_device()}")

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        assert stream.device == self.current_device()
        before, self.here.stream = self.current_stream(), stream
        try:
            yield
        finally:
            self.here.stream = before


class Stream:
    def __init__(self, cuda: Cuda) -> None:
        self.cuda, self.device = cuda, cuda.current_device()

    def wait_stream(self, other: Any) -> None:
        self.cuda.events.append(("wait", self, other))

    def synchronize(self) -> None:
        self.cuda.events.append(("synchronize", self))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    fake = Cuda()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("current_device", "set_device", "device", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    monkeypatch.setattr(torch.cuda, "Stream", lambda: Stream(fake))
    return fake


class Seen:
    """Remembers, in `log`, what it was told and what was current where it was built and called."""

    log: list[dict[str, Any]]

    def __init__(self, device: str) -> None:
        self.told = device
        self._note("built")

    def __call__(self, images: Any) -> list[float]:
        self._note("called")
        if self.hangs:
            type(self).hangs -= 1
            self.free.wait(60)
        return [1.0] * len(images)

    def _note(self, what: str) -> None:
        self.log.append(
            {
                "what": what,
                "thread": threading.current_thread().name,
                "told": self.told,
                "device": torch.cuda.current_device(),
                "stream": torch.cuda.current_stream(),
            }
        )


def plain(images: Any) -> list[float]:
    """A function is told of no device, and means the current one."""
    Seen.log.append({"what": "called", "device": torch.cuda.current_device()})
    return [1.0] * len(images)


@pytest.fixture
def seen(install: Install, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Any]]:
    for name, value in {"log": [], "hangs": 0, "free": threading.Event()}.items():
        monkeypatch.setattr(Seen, name, value, raising=False)
    monkeypatch.setitem(sys.modules, "seen", sys.modules[__name__])
    install(seen="seen:Seen", plain="seen:plain")
    yield Seen
    Seen.free.set()  # type: ignore[attr-defined]


def test_the_device_of_a_run_has_its_number(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bare `cuda` would be another GPU in another thread."""
    monkeypatch.setattr(torch, "empty", lambda *shape, device: None)
    cuda.set_device("cuda:3")
    for name, expected in {"auto": "cuda:3", "cuda": "cuda:3", "cuda:1": "cuda:1", "cpu": "cpu"}.items():
        assert str(pick_device(name)) == expected


def test_a_reward_is_not_blamed_for_the_gpu_that_it_was_given(
    cuda: Cuda, seen: type[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    cuda.set_device("cuda:3")
    with open_scorer({"mine": RewardConfig(plugin="seen")}, "cuda:3") as scorer:
        assert submit(scorer, [""]).applicable.all()
    assert [row["device"] for row in Seen.log] == [3, 3]
    assert not caplog.messages


@pytest.mark.parametrize("device", ["cuda:3", "cuda"])
def test_a_thread_of_a_reward_is_on_the_run_s_gpu(cuda: Cuda, seen: type[Any], device: str) -> None:
    cuda.set_device("cuda:3")
    with open_scorer(
        {"mine": RewardConfig(plugin="seen"), "bare": RewardConfig(plugin="plain")}, device
    ) as scorer:
        for _ in range(2):
            assert submit(scorer, ["", ""]).applicable.all()
    assert cuda.current_device() == 3
    assert [row["device"] for row in seen.log] == [3] * 5
    built, *calls = [row for row in seen.log if "told" in row]
    assert (built["told"], built["stream"]) == ("cuda:3", "default of 3")
    assert {row["thread"] for row in calls} == {"call-mine"}
    (stream,) = {row["stream"] for row in calls}
    # Weights are there before the first call, and answers before anybody reads them.
    own = [event for event in cuda.events if event[1] is stream]
    assert own == [("wait", stream, "default of 3"), ("synchronize", stream), ("synchronize", stream)]
    streams = {event[1] for event in cuda.events}
    assert len(streams) == 2


def test_a_rebuilt_reward_is_on_the_same_gpu(cuda: Cuda, seen: type[Any]) -> None:
    """It is built in a thread whose current GPU is the first."""
    cuda.set_device("cuda:2")
    seen.hangs = 1
    with open_scorer({"mine": RewardConfig(plugin="seen", timeout=0.2, retries=1)}, "cuda") as scorer:
        assert submit(scorer, ["", ""]).applicable.all()
    assert [(row["what"], row["device"], row["told"]) for row in seen.log] == [
        ("built", 2, "cuda:2"),
        ("called", 2, "cuda:2"),
        ("built", 2, "cuda:2"),
        ("called", 2, "cuda:2"),
    ]
    assert seen.log[2]["thread"] != seen.log[0]["thread"]
    assert seen.log[1]["stream"] is not seen.log[3]["stream"]


@pytest.mark.parametrize(("own", "device"), [("cuda:1", 1), ("cuda", 3), ("cpu", 0)])
def test_a_reward_s_own_device_counts(cuda: Cuda, seen: type[Any], own: str, device: int) -> None:
    cuda.set_device("cuda:3")
    with open_scorer({"mine": RewardConfig(plugin="seen", options={"device": own})}, "cuda:3") as scorer:
        submit(scorer, [""])
    _, called = seen.log
    assert called["told"] == (f"cuda:{device}" if own != "cpu" else "cpu")
    assert called["device"] == device  # of a CPU's the thread's, as it began
    assert isinstance(called["stream"], Stream) == (own != "cpu")


def test_a_server_s_threads_are_on_the_gpu_that_the_run_named(cuda: Cuda, seen: type[Any]) -> None:
    """As `marble rewards serve` makes them, in a process whose current GPU is the first."""
    settings = RewardConfig(plugin="seen")
    with closing(RewardWorker("mine", settings, maker("mine", settings, "cuda:3"))) as worker:
        worker.executor.submit(worker.attempt, Batch(pictures(1), [""], [{}])).result()
    assert [(row["what"], row["device"]) for row in seen.log] == [("built", 3), ("called", 3)]
    assert cuda.current_device() == 0


def test_a_check_on_gpu_is_on_the_current_one(cuda: Cuda, seen: type[Any]) -> None:
    cuda.set_device("cuda:1")
    make = gpu_maker("mine", RewardConfig(plugin="seen"))
    assert not isinstance(make, str)
    make().call(Batch(pictures(1), [""], [{}]))
    assert [(row["told"], row["device"]) for row in seen.log] == [("cuda:1", 1)] * 2


def test_on_a_cpu_a_call_is_the_plugin_s_own(seen: type[Any]) -> None:
    """Nothing stands between, where there is no GPU to be on."""
    reward = build("mine", "plain", {}, "cpu")
    assert "on.<locals>" not in reward.call.__qualname__
