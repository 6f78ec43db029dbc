"""Find and compile the repeated blocks that make up most of a transformer."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

# Limit of compiled variants: kinds of blocks x adapters x with and without gradients x one sample or more.
COMPILED_VARIANTS = 64


def compile_blocks(transformer: nn.Module) -> None:
    """Compile the repeated blocks of a transformer one by one; blocks of one kind share the compiled code.

    The code serves every number of samples but one, for which torch compiles its own.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_VARIANTS)
    for block in repeated_blocks(transformer):
        block.compile()
        assert block._compiled_call_impl is not None
        block._compiled_call_impl = _mark_samples(block._compiled_call_impl)


def _mark_samples(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Mark the first dimension as dynamic of every input that has as many samples as the first input."""

    @wraps(compiled)
    def call(*args: Any, **kwargs: Any) -> Any:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim()]
        for tensor in tensors:
            if len(tensor) == len(tensors[0]):
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return compiled(*args, **kwargs)

    return call


def repeated_blocks(transformer: nn.Module) -> list[nn.Module]:
    """Return the blocks in all module lists of a transformer, in order."""
    stacks = [child for child in transformer.children() if isinstance(child, nn.ModuleList)]
    return [block for stack in stacks for block in stack]
