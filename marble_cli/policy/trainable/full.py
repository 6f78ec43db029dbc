"""Train all weights of a network: float32 copies of it are the trained and the behaviour policy."""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from marble_cli.distributed.shards import full_on, local, local_shard
from marble_cli.errors import CheckpointError
from marble_cli.policy.base import Adapter
from marble_cli.policy.diffusers_types import Network, Pipeline
from marble_cli.policy.trainable.blocks import compile_blocks
from marble_cli.policy.trainable.fit import describe_misfits, find_misfits


class FullWeights:
    """Three networks of one architecture; the pipeline's `name` is the active one.

    Implements `policy.base.Trainable`. The frozen network is the pipeline's own, as loaded. The trained
    one starts as its copy in float32, and the behaviour policy as a copy of the trained one. Copies are made
    at first use, because only training needs a behaviour policy.
    """

    layers: list[nn.Linear] | None = None

    def __init__(self, pipeline: Pipeline, name: str, compiled: bool, place: Callable[[nn.Module], None]):
        self.pipeline, self.name, self.compiled, self.place = pipeline, name, compiled, place
        frozen: Network = getattr(pipeline, name).requires_grad_(False)
        without_weights: dict[int, object] = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta", dtype=torch.float32), requires_grad=False)
            for p in frozen.parameters()
        }
        self.skeleton = copy.deepcopy(frozen, without_weights)
        place(frozen)
        self.networks: dict[Adapter, Network] = {None: frozen}
        self._parameters: dict[Adapter, dict[str, nn.Parameter]] = {}

    def network(self, adapter: Adapter) -> Network:
        """Return the network with these weights; make it at first use."""
        if adapter not in self.networks:
            source = self.network(None if adapter == "trained" else "trained")
            new = copy.deepcopy(self.skeleton).requires_grad_(adapter == "trained")
            if self.compiled:
                compile_blocks(new)
            self.place(new)
            with torch.no_grad():
                for empty, tensor in zip(_tensors(new), _tensors(source), strict=True):
                    local(empty).copy_(local(tensor))
            self.networks[adapter] = new
            # Listed once: while FSDP gathers a block, it has other parameters.
            self._parameters[adapter] = dict(new.named_parameters())
        return self.networks[adapter]

    def parameters(self, adapter: Literal["trained", "behaviour"]) -> dict[str, nn.Parameter]:
        self.network(adapter)
        return self._parameters[adapter]

    def activate(self, adapter: Adapter) -> None:
        if getattr(self.pipeline, self.name) is not (network := self.network(adapter)):
            setattr(self.pipeline, self.name, network)

    def named(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # With buffers, such as SD3's table of positions, so that diffusers can load it as a whole model.
        return {**self.network("trained").state_dict(), **values}

    def state(self) -> dict[str, Tensor]:
        return {name: full_on(value, 0) for name, value in self.named({}).items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        own = self.network("trained").state_dict()
        shapes = {name: value.shape for name, value in own.items()}
        if misfits := find_misfits(shapes, state):
            raise CheckpointError(
                f"the network {describe_misfits(misfits, shapes, state)}. "
                "Expected a checkpoint of the same model with model.train=full."
            )
        for adapter in self.networks.keys() - {None}:
            for name, tensor in self.network(adapter).state_dict().items():
                local(tensor).copy_(local_shard(state[name], tensor))


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()
