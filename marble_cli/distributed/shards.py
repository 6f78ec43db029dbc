"""Convert between whole tensors and the shards that a rank holds.

Sharded tensors are FSDP2's DTensors, cut along their first dimension. A plain tensor is its own shard.
"""

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of `tensor`, by reference; its first dimension may be 0."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def as_dtensor(shard: Tensor, like: Tensor) -> Tensor:
    """Return this rank's flat `shard` [n] in the shape, mesh and placements of `like`."""
    if not isinstance(like, DTensor):
        return shard.view_as(like)
    shaped = shard.view_as(like.to_local())
    whole: Tensor = DTensor.from_local(
        shaped, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
    return whole


def local_shard(whole: Tensor, like: Tensor, dim: int = 0) -> Tensor:
    """Return a view of this rank's shard of `whole`, cut along `dim` as `like` is along dimension 0."""
    if not isinstance(like, DTensor):
        return whole
    axis = next(axis for axis, placement in enumerate(like.placements) if placement.is_shard())
    shards = whole.chunk(like.device_mesh.size(axis), dim)
    index = like.device_mesh.get_local_rank(axis)
    return shards[index] if index < len(shards) else whole.narrow(dim, 0, 0)


def full_on(tensor: Tensor, rank: int) -> Tensor:
    """Copy the whole tensor to the CPU.

    For a DTensor all ranks must call this; only `rank` gets the tensor, the others an empty one.
    """
    if not isinstance(tensor, DTensor):
        return tensor.detach().to("cpu", copy=True)
    whole: Tensor = tensor.full_tensor().detach()
    return whole.to("cpu", copy=True) if dist.get_rank() == rank else whole.new_empty(0, device="cpu")
