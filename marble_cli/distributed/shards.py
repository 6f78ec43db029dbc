"""Tensors of which a rank holds a part: FSDP2's DTensors, cut along their first dimension, beside plain ones.

A plain tensor is its own part and its own whole.
"""

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """This rank's part, by reference; the first dimension may be 0."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def as_dtensor(part: Tensor, tensor: Tensor) -> Tensor:
    """This rank's `part` [n] in the form of `tensor`, of which it holds as much."""
    if not isinstance(tensor, DTensor):
        return part.view_as(tensor)
    shaped = part.view_as(tensor.to_local())
    whole: Tensor = DTensor.from_local(
        shaped, tensor.device_mesh, tensor.placements, shape=tensor.shape, stride=tensor.stride()
    )
    return whole


def local_shard(whole: Tensor, like: Tensor, dim: int = 0) -> Tensor:
    """This rank's part of `whole`, cut along `dim` as `like` is along its first dimension; a view."""
    if not isinstance(like, DTensor):
        return whole
    axis = next(axis for axis, placement in enumerate(like.placements) if placement.is_shard())
    parts = whole.chunk(like.device_mesh.size(axis), dim)
    place = like.device_mesh.get_local_rank(axis)
    return parts[place] if place < len(parts) else whole.narrow(dim, 0, 0)


def full_on_rank0(tensor: Tensor) -> Tensor:
    """The whole tensor, copied to the CPU. Of a DTensor, for which all ranks must ask, the main rank's alone; others get an empty one."""
    if not isinstance(tensor, DTensor):
        return tensor.detach().to("cpu", copy=True)
    whole: Tensor = tensor.full_tensor().detach()
    return whole.to("cpu", copy=True) if dist.get_rank() == 0 else whole.new_empty(0, device="cpu")
