"""The ranks of a run: a single process, or as many as a launcher started."""

import copy
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from marble_cli.distributed.joining import joining
from marble_cli.errors import ConfigError, LostError, MarbleError, PeerError

# How long ranks wait for a rank that scores, writes or reads. The launcher notices at once if a rank dies.
PATIENCE = timedelta(hours=2)
JOINING = timedelta(minutes=10)  # timeout for all ranks to join when a run starts


class Ranks:
    """This process's `rank` among `world` ranks; a context manager that joins and leaves the process group.

    Collectives on GPU tensors use NCCL, those on CPU tensors gloo.

    Args:
        device: `cpu`, or anything else for the GPU whose index is the process's local rank, if there is one.
        always: create a process group for a single process, too.
    """

    def __init__(self, device: str = "auto", *, always: bool = False) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.local_world = int(os.environ.get("LOCAL_WORLD_SIZE", self.world))
        self.grouped = always or self.world > 1
        self.leaving = False  # whether `raise_together` made all ranks raise
        self.cuda = device != "cpu" and torch.cuda.is_available()
        self.group: dist.ProcessGroup | None = None  # None: that of all ranks

    @classmethod
    def alone(cls) -> "Ranks":
        """Return this process as a world of one, even if a launcher started it."""
        ranks = cls("cpu")
        ranks.rank, ranks.world, ranks.grouped = 0, 1, False
        ranks.local_rank, ranks.local_world = 0, 1
        return ranks

    def apart(self) -> "Ranks":
        """Return these ranks with a process group of their own, for a thread beside the one that trains.

        All ranks must call this. The group is gloo's: for tensors on the CPU.
        """
        ranks = copy.copy(self)
        if self.world > 1:
            ranks.group = dist.new_group(backend="gloo", timeout=PATIENCE)
        return ranks

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def __enter__(self) -> "Ranks":
        if self.grouped:
            if self.cuda and self.world > 1:
                self._check_devices()
                torch.cuda.set_device(self.local_rank)
            with joining(self.rank, self.world):
                store = self._store()
                dist.init_process_group(
                    "cpu:gloo,cuda:nccl" if self.cuda else "gloo",
                    store=store,
                    rank=self.rank,
                    world_size=self.world,
                    timeout=JOINING,
                )
                self._connect()
            store.set_timeout(PATIENCE)
            # Private: torch has no public call that changes the timeout of every backend of a process group.
            dist.distributed_c10d._set_pg_timeout(PATIENCE)
        return self

    def _store(self) -> Any:
        """Return the store through which the processes exchange their addresses."""
        if self.world == 1:
            return dist.HashStore()  # type: ignore[attr-defined]
        return next(rendezvous("env://", self.rank, self.world, timeout=JOINING))[0]

    def _connect(self) -> None:
        """Run a first all-reduce over gloo and, on GPUs, NCCL, since backends connect at first use."""
        if self.world == 1:
            return
        for device in ("cpu", f"cuda:{self.local_rank}") if self.cuda else ("cpu",):
            joined = int(self.all_reduce(torch.tensor([1.0], device=device)))
            assert joined == self.world, f"{joined} of {self.world} processes answered"

    def _check_devices(self) -> None:
        """Check that every process of this node has its own GPU; only local rank 0 shows the error."""
        if self.local_world > (gpus := torch.cuda.device_count()):
            error = ConfigError(
                f"{self.local_world} processes on {socket.gethostname()} see {gpus} GPUs. Expected one GPU "
                "per process: lower --nproc (launcher.nproc), or let every process see all GPUs of its node."
            )
            raise error if self.local_rank == 0 else PeerError(str(error), error.exit_code)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.grouped and kind is None:
            self._wait_for_all()
            dist.destroy_process_group()
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            raise LostError(
                f"process {self.rank} on {socket.gethostname()} lost the others: {_reason(error)}"
            ) from error

    def _wait_for_all(self) -> None:
        """Wait until every rank is done: a launcher may kill the other processes when one has ended."""
        try:
            self.barrier()
        except RuntimeError as error:
            if "closed by peer" not in str(error):  # as by one that went on first, and has left
                raise

    @contextmanager
    def raise_together(self) -> Iterator[None]:
        """Raise together: if any rank fails inside the block, every rank raises. No collectives inside.

        All ranks must enter the block.

        Raises:
            Exception: this rank's own error, if it is the lowest rank that failed.
            PeerError: a lower rank failed; with the message and exit code of that rank.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        if self.world == 1:
            if error is not None:
                raise error
            return
        code = error.exit_code if isinstance(error, MarbleError) else 1
        own = None if error is None else {"message": str(error), "exit_code": code}
        failures = self.all_gather_json(own)
        first = next((rank for rank, failure in enumerate(failures) if failure), None)
        if first is None:
            return
        self.leaving = True
        if error is not None and first == self.rank:
            raise error
        raise PeerError(
            f"process {first} failed: {failures[first]['message']}", failures[first]["exit_code"]
        ) from error

    def all_gather_json(self, own: Any) -> list[Any]:
        """Gather a JSON value from every rank; return all values in rank order, on every rank."""
        text = torch.frombuffer(bytearray(json.dumps(own).encode()), dtype=torch.uint8)
        if self.world == 1:
            return [json.loads(text.numpy().tobytes())]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([len(text)]), self.group)
        padded = torch.zeros(int(max(sizes)), dtype=torch.uint8)
        padded[: len(text)] = text
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(parts, padded, self.group)
        return [
            json.loads(part[: int(size)].numpy().tobytes()) for part, size in zip(parts, sizes, strict=True)
        ]

    def broadcast_json(self, own: Any) -> Any:
        """Return the main rank's JSON value on every rank."""
        return self.all_gather_json(own if self.is_main else None)[0]

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def all_reduce_max(self, value: Tensor) -> Tensor:
        """Take the elementwise maximum over ranks, in place."""
        if self.world > 1:
            dist.all_reduce(value, dist.ReduceOp.MAX, self.group)
        return value

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Concatenate the ranks' tensors of equal shape along the last dimension."""
        if self.world == 1:
            return tensor
        local = tensor.contiguous()
        parts = [torch.empty_like(local) for _ in range(self.world)]
        dist.all_gather(parts, local, self.group)
        return torch.cat(parts, dim=-1)

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Copy the main rank's `tensor` to every rank, in place and bit by bit."""
        if self.world > 1:
            dist.broadcast(tensor, 0, self.group)
        return tensor

    def barrier(self) -> None:
        """Wait until all ranks have called this."""
        self.any(False)

    def any(self, flag: bool) -> bool:
        """Tell, on every rank, whether `flag` is true on at least one rank."""
        return bool(self.all_reduce(torch.tensor(int(flag))))


def _reason(error: Exception) -> str:
    """Return the first sentence of a backend's error, without its source location."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[\S+\] ", "", line).split(". ")[0]
