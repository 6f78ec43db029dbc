"""How the transformer is placed on the ranks: whole on each (`ddp`), or in shards (`fsdp`, torch's FSDP2).

In both layouts a rank processes its own samples, and gradients are sums over the samples of all ranks.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from marble_cli.config.enums import Parallel
from marble_cli.config.trainer import TrainerConfig
from marble_cli.distributed.ranks import Ranks
from marble_cli.distributed.shards import local, local_shard


@dataclass(frozen=True)
class GradientRows:
    """Buffers that gradients accumulate in, one row per loss, in the order of the parameters.

    K is the number of rows, P the number of all parameters, n the number that this rank holds.

    Attributes:
        per_sample: [K, P] gradients of whole parameters over this rank's samples, from per-sample gradients.
        autograd: [R, n] gradients of this rank's shards, as backward passes leave them.
        combined: [K + R, P] both as one tensor, if shards are whole parameters.
    """

    per_sample: Tensor
    autograd: Tensor
    combined: Tensor | None = None


class PlaceModel(Protocol):
    """Place a transformer on its device, in the form in which it computes.

    Args:
        transformer: the model; parameters on the meta device get storage.
        blocks: its repeated blocks, which hold most of the parameters.
        device: where to place it.
        dtype: the type to compute in.
    """

    def __call__(
        self, transformer: nn.Module, blocks: Sequence[nn.Module], device: torch.device, dtype: torch.dtype
    ) -> None: ...


def place_whole(
    transformer: nn.Module, blocks: Sequence[nn.Module], device: torch.device, dtype: torch.dtype
) -> None:
    """Place the whole transformer on one device (a `PlaceModel`)."""
    if any(parameter.is_meta for parameter in transformer.parameters()):
        transformer.to_empty(device=device)
    else:
        transformer.to(device)


class Layout(Protocol):
    """Where parameters and gradients are.

    Attributes:
        ranks: the ranks of the run.
        sharded: whether each rank holds only a shard of every parameter.
        shard_index: which shard this rank holds; ranks with the same shard hold the same numbers.
        replicas: the number of ranks that hold this shard.
    """

    ranks: Ranks
    sharded: bool
    shard_index: int
    replicas: int

    def raise_together(self) -> AbstractContextManager[None]:
        """Return `Ranks.raise_together` if a forward pass has no collectives, else a null context."""
        ...

    def place(
        self, transformer: nn.Module, blocks: Sequence[nn.Module], device: torch.device, dtype: torch.dtype
    ) -> None:
        """Place a transformer (a `PlaceModel`)."""
        ...

    def new_rows(self, parameters: Sequence[Tensor], *, per_sample: int, autograd: int) -> GradientRows:
        """Allocate zeros for gradients of `parameters`: numbers of rows of either kind."""
        ...

    def reduce(self, rows: GradientRows, parameters: Sequence[Tensor]) -> Tensor:
        """Sum gradients over all ranks; return this rank's shards [K + R, n], `per_sample` first."""
        ...

    def sum_over_shards(self, value: Tensor) -> Tensor:
        """Sum a value that every rank computed from its shard; return it on the CPU."""
        ...


class Replicated:
    """Every rank holds every parameter; one all-reduce sums all gradients."""

    sharded = False

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.shard_index, self.replicas = 0, ranks.world

    def raise_together(self) -> AbstractContextManager[None]:
        return self.ranks.raise_together()

    def place(
        self, transformer: nn.Module, blocks: Sequence[nn.Module], device: torch.device, dtype: torch.dtype
    ) -> None:
        place_whole(transformer, blocks, device, dtype)

    def new_rows(self, parameters: Sequence[Tensor], *, per_sample: int, autograd: int) -> GradientRows:
        combined = parameters[0].new_zeros(per_sample + autograd, _count(parameters))
        return GradientRows(combined[:per_sample], combined[per_sample:], combined)

    def reduce(self, rows: GradientRows, parameters: Sequence[Tensor]) -> Tensor:
        assert rows.combined is not None
        return self.ranks.all_reduce(rows.combined)

    def sum_over_shards(self, value: Tensor) -> Tensor:
        return value.cpu()


class Sharded:
    """FSDP2: a rank holds a shard of every parameter and gathers a block's parameters to compute with it.

    With several `replicas`, neighbouring ranks form as many groups, and each group holds one whole copy
    (HSDP).

    Args:
        ranks: the ranks; their process group must exist.
        device: the kind of device of the ranks.
        replicas: the number of whole copies; a divisor of the number of ranks.
        reshard: free a block's parameters after its forward pass and gather them again for the backward pass.
    """

    sharded = True

    def __init__(self, ranks: Ranks, device: torch.device, replicas: int, reshard: bool) -> None:
        self.ranks, self.reshard, self.device = ranks, reshard, device
        shards = ranks.world // replicas
        self.shard_index, self.replicas = ranks.rank % shards, replicas
        self.mesh = init_device_mesh(device.type, (replicas, shards), mesh_dim_names=("replicas", "shards"))
        if replicas == 1:
            self.mesh = self.mesh["shards"]

    def raise_together(self) -> AbstractContextManager[None]:
        # A pass gathers blocks from all ranks: if one rank fails, the others wait inside the pass.
        return nullcontext()

    def place(
        self, transformer: nn.Module, blocks: Sequence[nn.Module], device: torch.device, dtype: torch.dtype
    ) -> None:
        # Inputs are not cast: times in half precision would differ from the requested ones.
        precision = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        for module in (*blocks, transformer):
            fully_shard(module, mesh=self.mesh, mp_policy=precision, reshard_after_forward=True)
        if not self.reshard:
            transformer.register_forward_pre_hook(_keep_for_backward)
        if any(parameter.is_meta for parameter in transformer.parameters()):
            transformer.to_empty(device=device)

    def new_rows(self, parameters: Sequence[Tensor], *, per_sample: int, autograd: int) -> GradientRows:
        new_zeros = local(parameters[0]).new_zeros
        whole = _count(parameters) if per_sample else 0
        held = _count([local(parameter) for parameter in parameters])
        return GradientRows(new_zeros(per_sample, whole), new_zeros(autograd, held))

    def reduce(self, rows: GradientRows, parameters: Sequence[Tensor]) -> Tensor:
        autograd = rows.autograd.mul_(self.ranks.world)  # FSDP2 leaves the mean over ranks
        if not len(rows.per_sample):
            return autograd
        sums = self.ranks.all_reduce(rows.per_sample).split([p.numel() for p in parameters], dim=1)
        shards = [
            local_shard(whole.unflatten(1, parameter.shape), parameter, dim=1).flatten(1)
            for whole, parameter in zip(sums, parameters, strict=True)
        ]
        return torch.cat([torch.cat(shards, dim=1), autograd])

    def sum_over_shards(self, value: Tensor) -> Tensor:
        total = value.to(self.device)
        torch.distributed.all_reduce(total, group=self.mesh.get_group("shards"))
        return total.cpu()


def choose_layout(trainer: TrainerConfig, ranks: Ranks, device: torch.device) -> Layout:
    """Return the layout named by `trainer.parallel`."""
    if trainer.parallel is Parallel.ddp:
        return Replicated(ranks)
    return Sharded(ranks, device, trainer.fsdp.replicas, trainer.fsdp.reshard)


def _keep_for_backward(transformer: nn.Module, inputs: object) -> None:
    """Keep gathered parameters after a forward pass only if a backward pass follows.

    Without one, the parameters may change before the next pass, so gathered copies would be stale.
    """
    assert isinstance(transformer, FSDPModule)
    transformer.set_reshard_after_forward(not torch.is_grad_enabled())


def _count(parameters: Sequence[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
