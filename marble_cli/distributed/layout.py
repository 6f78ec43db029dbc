"""How the transformer lies on the ranks: whole on each (`ddp`), or in shards (`fsdp`, torch's FSDP2).

Either way a rank goes through its own samples, and gradients are sums over the samples of all ranks.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from marble_cli.config.schema import Parallel, TrainerConfig
from marble_cli.distributed.ranks import Ranks
from marble_cli.distributed.shards import local, local_shard


@dataclass(frozen=True)
class Rows:
    """Gradients under way, in the order of the parameters.

    `mixed` [K, P] of whole parameters, over this rank's samples; `passed` [R, n] of this rank's parts of them, as backward
    passes leave these. `together` [K + R, P] is both at once, where they are alike.
    """

    mixed: Tensor
    passed: Tensor
    together: Tensor | None = None


class Place(Protocol):
    """Puts a transformer, most of which are its `blocks`, on the device, to compute in `dtype`; what has no storage yet gets some."""

    def __call__(
        self, transformer: nn.Module, blocks: Sequence[nn.Module], device: torch.device, dtype: torch.dtype
    ) -> None: ...


def whole(
    transformer: nn.Module, blocks: Sequence[nn.Module], device: torch.device, dtype: torch.dtype
) -> None:
    """A `Place` for all of it on one device."""
    if any(parameter.is_meta for parameter in transformer.parameters()):
        transformer.to_empty(device=device)
    else:
        transformer.to(device)


class Layout(Protocol):
    """What the trainer needs to know of where parameters and gradients are."""

    ranks: Ranks
    sharded: bool
    part: int  # which part of the parameters this rank holds; ranks with the same part hold the same numbers
    copies: int  # how many ranks hold it

    def raise_together(self) -> AbstractContextManager[None]:
        """`Ranks.raise_together` around the model's passes, if a pass waits for no other rank; else nothing."""
        ...

    def place(
        self, transformer: nn.Module, blocks: Sequence[nn.Module], device: torch.device, dtype: torch.dtype
    ) -> None:
        """A `Place`."""
        ...

    def rows(self, parameters: Sequence[Tensor], *, mixed: int, passed: int) -> Rows:
        """Room for gradients of `parameters`, zero."""
        ...

    def reduce(self, rows: Rows, parameters: Sequence[Tensor]) -> Tensor:
        """[K + R, n]: this rank's parts of the gradients, mixed ones first, summed over all ranks' samples."""
        ...

    def total(self, amount: Tensor) -> Tensor:
        """The sum over parts of what was computed of this rank's, on the CPU."""
        ...


class Replicated:
    """Every rank holds every parameter; one all-reduce sums all gradients."""

    sharded = False

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.part, self.copies = 0, ranks.world

    def raise_together(self) -> AbstractContextManager[None]:
        return self.ranks.raise_together()

    def place(
        self, transformer: nn.Module, blocks: Sequence[nn.Module], device: torch.device, dtype: torch.dtype
    ) -> None:
        whole(transformer, blocks, device, dtype)

    def rows(self, parameters: Sequence[Tensor], *, mixed: int, passed: int) -> Rows:
        together = parameters[0].new_zeros(mixed + passed, _size(parameters))
        return Rows(together[:mixed], together[mixed:], together)

    def reduce(self, rows: Rows, parameters: Sequence[Tensor]) -> Tensor:
        assert rows.together is not None
        return self.ranks.all_reduce(rows.together)

    def total(self, amount: Tensor) -> Tensor:
        return amount.cpu()


class Sharded:
    """FSDP2: a rank holds a part of every parameter, and gathers a block's when it computes with it.

    With several `replicas`, each of these groups of neighbouring ranks holds one whole copy (HSDP).

    Args:
        ranks: of which the process group must be there.
        device: the ranks' kind of device.
        replicas: whole copies; a divisor of the number of ranks.
        reshard: give a block's parameters back after its forward pass and gather them again for the backward pass.
    """

    sharded = True

    def __init__(self, ranks: Ranks, device: torch.device, replicas: int, reshard: bool) -> None:
        self.ranks, self.reshard, self.device = ranks, reshard, device
        self.part, self.copies = ranks.rank % (ranks.world // replicas), replicas
        self.mesh = init_device_mesh(
            device.type, (replicas, ranks.world // replicas), mesh_dim_names=("replicas", "shards")
        )
        if replicas == 1:
            self.mesh = self.mesh["shards"]

    def raise_together(self) -> AbstractContextManager[None]:
        return nullcontext()  # a pass gathers blocks of all ranks: those that go on would wait within it

    def place(
        self, transformer: nn.Module, blocks: Sequence[nn.Module], device: torch.device, dtype: torch.dtype
    ) -> None:
        # Inputs stay as they are: times in half precision would not be the ones that were asked for.
        precision = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        for module in (*blocks, transformer):
            fully_shard(module, mesh=self.mesh, mp_policy=precision, reshard_after_forward=True)
        if not self.reshard:
            transformer.register_forward_pre_hook(_keep_for_backward)
        if any(parameter.is_meta for parameter in transformer.parameters()):
            transformer.to_empty(device=device)

    def rows(self, parameters: Sequence[Tensor], *, mixed: int, passed: int) -> Rows:
        new_zeros = local(parameters[0]).new_zeros
        size = sum(local(parameter).numel() for parameter in parameters)
        return Rows(new_zeros(mixed, _size(parameters) if mixed else 0), new_zeros(passed, size))

    def reduce(self, rows: Rows, parameters: Sequence[Tensor]) -> Tensor:
        passed = rows.passed.mul_(self.ranks.world)  # FSDP2 leaves the mean over ranks
        if not len(rows.mixed):
            return passed
        parts = self.ranks.all_reduce(rows.mixed).split([p.numel() for p in parameters], dim=1)
        own = [
            local_shard(part.unflatten(1, parameter.shape), parameter, dim=1).flatten(1)
            for part, parameter in zip(parts, parameters, strict=True)
        ]
        return torch.cat([torch.cat(own, dim=1), passed])

    def total(self, amount: Tensor) -> Tensor:
        whole = amount.to(self.device)
        torch.distributed.all_reduce(whole, group=self.mesh.get_group("shards"))
        return whole.cpu()


def choose(trainer: TrainerConfig, ranks: Ranks, device: torch.device) -> Layout:
    """The layout that `trainer.parallel` asks for."""
    if trainer.parallel is Parallel.ddp:
        return Replicated(ranks)
    return Sharded(ranks, device, trainer.fsdp.replicas, trainer.fsdp.reshard)


def _keep_for_backward(transformer: nn.Module, inputs: object) -> None:
    """Reshard after the forward pass only where no backward pass will: parameters that change must not stay gathered."""
    assert isinstance(transformer, FSDPModule)
    transformer.set_reshard_after_forward(not torch.is_grad_enabled())


def _size(parameters: Sequence[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
