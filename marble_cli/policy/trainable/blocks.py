"""Find and compile the repeated blocks that make up most of a transformer."""

import torch
from torch import nn

# Limit of compiled variants: kinds of blocks x adapters x with and without gradients x batch sizes.
COMPILED_VARIANTS = 64


def compile_blocks(transformer: nn.Module) -> None:
    """Compile the repeated blocks of a transformer one by one; blocks of one kind share the compiled code."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_VARIANTS)
    for block in repeated_blocks(transformer):
        block.compile()


def repeated_blocks(transformer: nn.Module) -> list[nn.Module]:
    """Return the blocks in all module lists of a transformer, in order."""
    stacks = [child for child in transformer.children() if isinstance(child, nn.ModuleList)]
    return [block for stack in stacks for block in stack]
