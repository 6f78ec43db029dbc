"""Count the bytes that a job without gradients takes at its peak, over tensors that have no storage."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROUNDED = 512  # bytes: torch's allocator takes multiples


def peak_bytes(job: Callable[[], Any]) -> int:
    """Return the most bytes that tensors made in `job` take at a time.

    Kernels' own working memory is not counted, nor is what the allocator cannot use between two tensors.

    Args:
        job: computes on the meta device.
    """
    counted = _Alive()
    with torch.no_grad(), FusedAttention(), counted:
        job()
    return counted.most


class _Alive(TorchDispatchMode):
    """Add up the storages that are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._seen = weakref.WeakSet[Any]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if _is_meta(leaf)}
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if _is_meta(leaf) and leaf.untyped_storage()._cdata not in given:
                self._add(leaf.untyped_storage())
        self.most = max(self.most, self.now)
        return output

    def _add(self, storage: Any) -> None:
        if storage not in self._seen:
            self._seen.add(storage)
            size = -(-storage.nbytes() // ROUNDED) * ROUNDED
            self.now += size
            weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


def _is_meta(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_meta


class FusedAttention(TorchFunctionMode):
    """Compute attention as on a device: by a kernel that keeps its inputs, its output and a sum per query.

    Without a device, torch would choose the formula that keeps every pair of tokens.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is functional.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Tensor:
    scale, bias = options.get("scale"), options.get("attn_mask")
    if bias is not None:  # kept if it is one of numbers; a mask of truth values is on the CPU here
        bias = bias.expand(-1, query.shape[1], -1, -1) if bias.is_floating_point() else None
    output: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, torch.is_grad_enabled(), scale=scale
    )[0]
    return output
