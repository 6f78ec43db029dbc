"""Ranks connect when a run starts, and report what to check if they cannot."""

import logging
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from marble_cli.distributed import joining, ranks
from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import JoinError

ADVISED = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "/dev/shm", "MASTER_ADDR", "docs/how-to/cluster.md")
LOST = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled system error, "
    "NCCL version 2.28.9\nncclSystemError: System call (e.g. socket, malloc) failed.\nLast error:\n"
)

Environment = Callable[..., None]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Environment:
    """Return a function that sets the environment variables of a rank."""

    def set_variables(rank: int, world: int, **more: object) -> None:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, **more}
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name, raising=False)
        for name, value in names.items():
            monkeypatch.setenv(name, str(value))

    return set_variables


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """Simulate two GPUs for the creation of a process group; return the calls, in order."""
    asked: list[tuple[Any, ...]] = []
    make = torch.tensor

    def tensor(values: list[float], device: str) -> Tensor:
        asked.append(("on", device))
        return make(values)

    def all_reduce(tensor: Tensor, group: object) -> None:
        asked.append(("all_reduce", tuple(tensor.shape)))
        tensor.fill_(2)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: asked.append(("set_device", index)))
    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(ranks, "rendezvous", lambda *a, **k: iter([(dist.HashStore(), 1, 2)]))
    monkeypatch.setattr(
        dist, "init_process_group", lambda backend, timeout, **more: asked.append(("group", backend, timeout))
    )
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(
        dist.distributed_c10d, "_set_pg_timeout", lambda timeout: asked.append(("from then on", timeout))
    )
    return asked


def test_gpus_connect_over_both_backends_at_start(
    environment: Environment, gpus: list[tuple[Any, ...]]
) -> None:
    environment(1, 2)
    Ranks().__enter__()
    assert gpus == [
        ("set_device", 1),
        ("group", "cpu:gloo,cuda:nccl", ranks.JOINING),
        ("on", "cpu"),
        ("all_reduce", (1,)),
        ("on", "cuda:1"),
        ("all_reduce", (1,)),
        ("from then on", ranks.PATIENCE),
    ]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (dist.DistBackendError(f"{LOST}Call to bind failed: Address"), "(Call to bind failed: Address)"),
        (
            dist.DistBackendError(f"{LOST}Error while creating shared memory segment /dev/shm/nccl-a"),
            "(Error while creating shared memory segment /dev/shm/nccl-a)",
        ),
        (dist.DistBackendError(f"{LOST}Cuda failure 2 'out of memory'"), "(Cuda failure 2 'out of memory')"),
        (RuntimeError("[gloo/pair.cc:534] Connection closed by peer"), "others: Connection closed by peer."),
        (torch.AcceleratorError("CUDA error: out of memory\nCompile"), "others: CUDA error: out of memory."),
        (dist.DistStoreError("wait timeout after 9ms"), "others: wait timeout after 9ms."),
    ],
)
def test_failed_first_all_reduce_names_what_to_check(
    environment: Environment,
    gpus: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    reason: str,
) -> None:
    def all_reduce(tensor: Tensor, group: object) -> None:
        raise error

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    environment(1, 2)
    with pytest.raises(JoinError) as caught, Ranks():
        raise AssertionError("joined")
    assert f"process 1 of 2 on {socket.gethostname()} cannot reach the others: " in str(caught.value)
    for part in (reason, *ADVISED):
        assert part in str(caught.value)
    assert (caught.value.exit_code, caught.value.__cause__) == (1, error)


def refused(reason: str) -> None:
    with pytest.raises(JoinError, match=reason) as caught, Ranks("cpu"):
        raise AssertionError("joined")
    assert caught.value.exit_code == 1
    for part in ADVISED:
        assert part in str(caught.value)


def test_missing_interface_is_reported(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(0, 1, GLOO_SOCKET_IFNAME="nosuch0")
    with (
        pytest.raises(JoinError, match="Unable to find address for: nosuch0. All processes"),
        Ranks("cpu", always=True),
    ):
        raise AssertionError("joined")


def test_used_port_is_reported(environment: Environment) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        environment(0, 2, MASTER_ADDR="127.0.0.1", MASTER_PORT=other.getsockname()[1])
        refused("failed to listen .* EADDRINUSE")


@pytest.mark.parametrize("host", ["127.0.0.1", "nowhere.invalid"])
def test_silent_first_machine_is_reported(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setattr(ranks, "JOINING", timedelta(milliseconds=50))
    environment(1, 2, MASTER_ADDR=host, MASTER_PORT=1)
    refused(rf"timed out after .* trying to connect to \({host}, 1\)")


def test_missing_processes_are_reported(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "JOINING", timedelta(milliseconds=50))
    environment(0, 2, MASTER_ADDR="127.0.0.1", MASTER_PORT=0)
    refused("1/2 clients joined")


def test_missing_variable_is_reported(environment: Environment) -> None:
    environment(0, 2)
    refused("environment variable MASTER_ADDR expected, but not set")


def test_long_wait_names_what_to_check(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning comes from the timer's thread, which this test joins."""
    monkeypatch.setattr(joining, "LATE_AFTER", 0.0)
    timers: list[Any] = []
    start = joining.threading.Timer.start
    monkeypatch.setattr(joining.threading.Timer, "start", lambda self: (timers.append(self), start(self)))
    with caplog.at_level(logging.WARNING, "marble"), joining.joining(3, 8):
        timers[0].join()
    assert f"process 3 of 8 on {socket.gethostname()} still waits to reach the others" in caplog.text
    for part in ADVISED:
        assert part in caplog.text


def test_documentation_explains_what_to_check() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "cluster.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith(("| `", "| free"))]
    for name in (*ADVISED[:4], "NCCL_DEBUG=INFO", "free memory"):
        assert any(name in row.split("|")[1] for row in rows), name


def test_quick_join_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with Ranks("cpu", always=True):
        pass
    assert caplog.text == ""


def test_a_run_that_is_done_does_not_fail_because_another_process_left_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def barrier(self: Ranks) -> None:
        raise RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:58577.")

    with Ranks("cpu", always=True):
        monkeypatch.setattr(Ranks, "barrier", barrier)
    assert not dist.is_initialized()
