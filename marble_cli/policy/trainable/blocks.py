"""The repeated blocks that most of a transformer is made of."""

import torch
from torch import nn

COMPILED = 64  # forms of a block: kinds of blocks x adapters x with and without gradients x batch sizes


def compile_blocks(transformer: nn.Module) -> None:
    """Compile the repeated blocks of a transformer, one by one: blocks of a kind share what is compiled."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED)
    for block in repeated_blocks(transformer):
        block.compile()


def repeated_blocks(transformer: nn.Module) -> list[nn.Module]:
    """The blocks that most of a transformer is made of."""
    stacks = [child for child in transformer.children() if isinstance(child, nn.ModuleList)]
    return [block for stack in stacks for block in stack]
