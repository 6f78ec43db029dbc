"""Find and compile the repeated blocks that make up most of a network."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

# Limit of compiled variants: kinds of blocks x adapters x with and without gradients x one sample or more.
COMPILED_VARIANTS = 64


def compile_blocks(network: nn.Module) -> None:
    """Compile the repeated blocks of a network one by one; blocks of one kind share the compiled code.

    The code serves every number of samples but one, for which torch compiles its own.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_VARIANTS)
    for block in repeated_blocks(network):
        block.compile()
        assert block._compiled_call_impl is not None
        block._compiled_call_impl = _mark_samples(block._compiled_call_impl)


def _mark_samples(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Mark the first dimension as dynamic of every input that has as many samples as the first input."""

    @wraps(compiled)
    def call(*args: Any, **kwargs: Any) -> Any:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim()]
        for tensor in tensors:
            if tensor.shape[0] == tensors[0].shape[0]:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return compiled(*args, **kwargs)

    return call


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """Return the blocks in all module lists of a network, or a UNet's transformer blocks, in order.

    The stages in a UNet's lists differ; it is the transformer blocks in them that repeat.
    """
    if hasattr(network, "mid_block"):  # a UNet, which computes its stages in this order
        stages = [getattr(network, name) for name in ("down_blocks", "mid_block", "up_blocks")]
        parts = [part for stage in stages if stage is not None for part in stage.modules()]
        return [part for part in parts if type(part).__name__ == "BasicTransformerBlock"]
    stacks = [child for child in network.children() if isinstance(child, nn.ModuleList)]
    if type(network).__name__ == "Lumina2Transformer2DModel":
        stacks = stacks[-1:]  # diffusers checkpoints these, and not the two refiners before them
    return [block for stack in stacks for block in stack]
