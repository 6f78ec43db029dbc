"""All weights of a transformer: trained and behaviour copies in float32 beside the frozen one."""

import copy
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from marble_cli.distributed.shards import full_on_rank0, local, local_shard
from marble_cli.errors import CheckpointError
from marble_cli.policy.base import Adapter
from marble_cli.policy.trainable.blocks import compile_blocks


class FullWeights:
    """Three transformers of one architecture, of which a pipeline holds the one that acts; implements `policy.base.Trainable`.

    The frozen one is the pipeline's own, as it was loaded. The trained one starts as its copy in float32, and the behaviour
    policy as a copy of the trained one. Each is made when it is first asked for: nothing but training needs a behaviour policy.
    """

    layers: list[nn.Linear] | None = None

    def __init__(self, pipeline: Any, compiled: bool, place: Callable[[nn.Module], None]):
        self.pipeline, self.compiled, self.place = pipeline, compiled, place
        frozen = pipeline.transformer.requires_grad_(False)
        without_weights: dict[int, object] = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta", dtype=torch.float32), requires_grad=False)
            for p in frozen.parameters()
        }
        self.skeleton = copy.deepcopy(frozen, without_weights)
        place(frozen)
        self.transformers: dict[Adapter, nn.Module] = {None: frozen}
        self._parameters: dict[Adapter, dict[str, nn.Parameter]] = {}

    def transformer(self, adapter: Adapter) -> nn.Module:
        """The transformer with these weights."""
        if adapter not in self.transformers:
            source = self.transformer(None if adapter == "trained" else "trained")
            made = copy.deepcopy(self.skeleton).requires_grad_(adapter == "trained")
            if self.compiled:
                compile_blocks(made)
            self.place(made)
            with torch.no_grad():
                for empty, tensor in zip(_tensors(made), _tensors(source), strict=True):
                    local(empty).copy_(local(tensor))
            self.transformers[adapter] = made
            # Kept, for a block's parameters are others while it is gathered.
            self._parameters[adapter] = dict(made.named_parameters())
        return self.transformers[adapter]

    def parameters(self, adapter: Literal["trained", "behaviour"]) -> dict[str, nn.Parameter]:
        self.transformer(adapter)
        return self._parameters[adapter]

    def activate(self, adapter: Adapter) -> None:
        if self.pipeline.transformer is not (transformer := self.transformer(adapter)):
            self.pipeline.transformer = transformer

    def state(self) -> dict[str, Tensor]:
        """Buffers among it, such as SD3's table of positions: a file of it is a whole model to diffusers."""
        state = self.transformer("trained").state_dict()
        return {name: full_on_rank0(value) for name, value in state.items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        own = self.transformer("trained").state_dict()
        wrong = sorted(own.keys() ^ state.keys()) or [k for k in own if own[k].shape != state[k].shape]
        if wrong:
            raise CheckpointError(
                f"the weights do not fit this model: {wrong[0]} differs ({len(wrong)} tensors in all). "
                "Expected a checkpoint of the same model with model.train=full."
            )
        for adapter in self.transformers.keys() - {None}:
            for name, tensor in self.transformer(adapter).state_dict().items():
                local(tensor).copy_(local_shard(state[name], tensor))


def _tensors(transformer: nn.Module) -> Iterator[Tensor]:
    yield from transformer.parameters()
    yield from transformer.buffers()
