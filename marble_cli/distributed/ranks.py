"""The ranks of a job: one process alone, or as many as torchrun started."""

import os
from types import TracebackType

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """This process's `rank` among `world`; a context manager that joins and leaves the process group.

    A process alone has none, unless it is there `always`.
    """

    def __init__(self, *, always: bool = False) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.grouped = always or self.world > 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def __enter__(self) -> "Ranks":
        if self.grouped:
            cuda = torch.cuda.is_available()
            if cuda:
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            alone = dist.HashStore() if self.world == 1 else None  # type: ignore[attr-defined]
            dist.init_process_group(
                "nccl" if cuda else "gloo", store=alone, rank=self.rank, world_size=self.world
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.grouped and kind is None:
            dist.destroy_process_group()

    def share(self, count: int) -> range:
        """The indices of this rank among `count`, contiguous; `count` is a multiple of the world size."""
        each = count // self.world
        return range(self.rank * each, (self.rank + 1) * each)

    def padded_share(self, count: int) -> list[int]:
        """The indices of this rank among `count`, as many on every rank: past the end, the last one again."""
        each = -(-count // self.world)
        return [min(i, count - 1) for i in range(self.rank * each, (self.rank + 1) * each)]

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def largest(self, value: Tensor) -> Tensor:
        """The largest of all ranks' values, in place."""
        if self.world > 1:
            dist.all_reduce(value, dist.ReduceOp.MAX)
        return value

    def gather(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Concatenate the ranks' tensors of equal shape along the last dimension, on the CPU."""
        if self.world == 1:
            return tensor
        local = tensor.contiguous().to(device)
        parts = [torch.empty_like(local) for _ in range(self.world)]
        dist.all_gather(parts, local)
        return torch.cat(parts, dim=-1).cpu()

    def first(self, tensor: Tensor, device: torch.device) -> Tensor:
        """The main rank's `tensor`, on the CPU, on every rank to the same bits."""
        if self.world == 1:
            return tensor
        shared = tensor.to(device)
        dist.broadcast(shared, 0)
        return shared.cpu()

    def any(self, flag: bool, device: torch.device) -> bool:
        """True on every rank if `flag` is true on some rank."""
        return bool(self.sum(torch.tensor(float(flag), device=device)))
