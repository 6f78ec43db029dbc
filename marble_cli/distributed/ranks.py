"""The ranks of a job: one process alone, or as many as a launcher started."""

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

# How long ranks wait for one that scores, writes or reads. One that dies is noticed at once, by its launcher.
PATIENCE = timedelta(hours=2)
JOINING = timedelta(minutes=10)  # until all have met, when a run starts


class Ranks:
    """This process's `rank` among `world`; a context manager that joins and leaves the process group.

    A process alone has no group, unless it is there `always`. Tensors of a GPU travel over NCCL, those of the CPU over gloo.

    Args:
        device: `cpu`, or anything else for a GPU where there is one: that of the process's number on its node.
        always: have a process group of one, too.
    """

    def __init__(self, device: str = "auto", *, always: bool = False) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.local_world = int(os.environ.get("LOCAL_WORLD_SIZE", self.world))
        self.grouped = always or self.world > 1
        self.leaving = False  # an error was agreed upon
        self.cuda = device != "cpu" and torch.cuda.is_available()

    @classmethod
    def alone(cls) -> "Ranks":
        """This process, whatever started it."""
        ranks = cls("cpu")
        ranks.rank, ranks.world, ranks.grouped = 0, 1, False
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
                self._meet()
            store.set_timeout(PATIENCE)
            dist.distributed_c10d._set_pg_timeout(PATIENCE)
        return self

    def _store(self) -> Any:
        """Where the processes find one another's addresses."""
        if self.world == 1:
            return dist.HashStore()  # type: ignore[attr-defined]
        return next(rendezvous("env://", self.rank, self.world, timeout=JOINING))[0]

    def _meet(self) -> None:
        """A first sum over all ranks, over gloo and on GPUs over NCCL: that connects them when first used."""
        if self.world == 1:
            return
        for device in ("cpu", f"cuda:{self.local_rank}") if self.cuda else ("cpu",):
            met = int(self.all_reduce(torch.ones(1, device=device)))
            assert met == self.world, f"{met} of {self.world} processes answered"

    def _check_devices(self) -> None:
        """Every process of this node has a GPU of its own; the node's first one says where it has not."""
        if self.local_world > (found := torch.cuda.device_count()):
            error = ConfigError(
                f"{self.local_world} processes on {socket.gethostname()} see {found} GPUs. Expected one each: lower --nproc "
                "(launcher.nproc), or let every process see all GPUs of its node."
            )
            raise error if self.local_rank == 0 else PeerError(str(error), error.exit_code)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.grouped and kind is None:
            self.barrier()  # a launcher may end the others when one has gone
            dist.destroy_process_group()
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            raise LostError(
                f"process {self.rank} on {socket.gethostname()} lost the others: {_reason(error)}"
            ) from error

    @contextmanager
    def raise_together(self) -> Iterator[None]:
        """What is done within succeeds on all ranks or ends them all; no rank waits for one that has failed.

        All ranks come here, and within none may wait for another.

        Raises:
            Exception: this rank's own, where it is the first that failed.
            PeerError: another rank failed first; its message and exit code.
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
        told = self.all_gather_json(None if error is None else {"message": str(error), "exit_code": code})
        first = next((rank for rank, failure in enumerate(told) if failure), None)
        if first is None:
            return
        self.leaving = True
        if error is not None and first == self.rank:
            raise error
        raise PeerError(
            f"process {first} failed: {told[first]['message']}", told[first]["exit_code"]
        ) from error

    def all_gather_json(self, own: Any) -> list[Any]:
        """What JSON can hold of every rank, in their order, on all of them."""
        text = torch.frombuffer(bytearray(json.dumps(own).encode()), dtype=torch.uint8)
        if self.world == 1:
            return [json.loads(text.numpy().tobytes())]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([len(text)]))
        padded = torch.zeros(int(max(sizes)), dtype=torch.uint8)
        padded[: len(text)] = text
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(parts, padded)
        return [
            json.loads(part[: int(size)].numpy().tobytes()) for part, size in zip(parts, sizes, strict=True)
        ]

    def broadcast_json(self, own: Any) -> Any:
        """What JSON can hold, of the main rank, on all of them."""
        return self.all_gather_json(own if self.is_main else None)[0]

    def rank_indices(self, count: int) -> range:
        """The indices of this rank among `count`, contiguous; `count` is a multiple of the world size."""
        each = count // self.world
        return range(self.rank * each, (self.rank + 1) * each)

    def padded_rank_indices(self, count: int) -> list[int]:
        """The indices of this rank among `count`, as many on every rank: past the end, the last one again."""
        each = -(-count // self.world)
        return [min(i, count - 1) for i in range(self.rank * each, (self.rank + 1) * each)]

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_reduce_max(self, value: Tensor) -> Tensor:
        """The largest of all ranks' values, in place."""
        if self.world > 1:
            dist.all_reduce(value, dist.ReduceOp.MAX)
        return value

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Concatenate the ranks' tensors of equal shape along the last dimension."""
        if self.world == 1:
            return tensor
        local = tensor.contiguous()
        parts = [torch.empty_like(local) for _ in range(self.world)]
        dist.all_gather(parts, local)
        return torch.cat(parts, dim=-1)

    def broadcast(self, tensor: Tensor) -> Tensor:
        """The main rank's `tensor`, in place, on every rank to the same bits."""
        if self.world > 1:
            dist.broadcast(tensor, 0)
        return tensor

    def barrier(self) -> None:
        """Until all ranks are here."""
        self.any(False)

    def any(self, flag: bool) -> bool:
        """True on every rank if `flag` is true on some rank."""
        return bool(self.all_reduce(torch.tensor(int(flag))))


def _reason(error: Exception) -> str:
    """The first sentence of a backend's error, without the place in its source."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[\S+\] ", "", line).split(". ")[0]
