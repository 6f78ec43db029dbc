"""Count what a training pass of one sample costs, by a pass over tensors that have shapes and no storage."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from marble_cli.policy.base import Family, PromptEmbeddings
from marble_cli.policy.diffusers_types import Autoencoder
from marble_cli.policy.editing import as_editing, image_size, name_latents
from marble_cli.policy.model_size import PassCost
from marble_cli.policy.peak import FusedAttention, peak_bytes
from marble_cli.policy.trainable.blocks import repeated_blocks


def pass_cost(
    family: Family, network: nn.Module, prompt_tokens: int, dtype: torch.dtype, pictures: int = 1
) -> PassCost:
    """Count the FLOP and the kept bytes of a velocity and its gradient, for one image at one time.

    Of equal blocks in a row two are computed, and each further one adds what the second does. The first may
    be given what needs no gradient; the last of all, computed too, may have outputs that lead nowhere.

    Args:
        family: the family of a pipeline whose network is `network`.
        network: on the meta device; parameters that are trained require gradients.
        prompt_tokens: the length of the prompt's embeddings.
        dtype: the type to compute in.
        pictures: that the prompt starts from, of an image's size each, if the family's models take some.
    """
    inputs = make_inputs(family, network, prompt_tokens, dtype, pictures)
    with fewer_blocks(network, dtype) as further:
        return _count_pass(family, network, inputs, further)


def velocity_bytes(
    family: Family, network: nn.Module, prompt_tokens: int, dtype: torch.dtype, pictures: int = 1
) -> int:
    """Count the bytes that one image's velocity without a gradient takes at its peak; as `pass_cost`."""
    inputs = make_inputs(family, network, prompt_tokens, dtype, pictures)
    with fewer_blocks(network, dtype):
        return peak_bytes(lambda: family.velocity(*inputs))


@contextmanager
def fewer_blocks(network: nn.Module, dtype: torch.dtype) -> Iterator[Mapping[nn.Module, int]]:
    """Leave out equal blocks of a network; give how many others a block that is left stands for, if any."""
    nn.Module.to(network, dtype)  # past the warnings of diffusers' own
    blocks = repeated_blocks(network)
    stacks = [
        (parent, name, stack)
        for parent in network.modules()
        for name, stack in parent.named_children()
        if isinstance(stack, nn.ModuleList) and not set(blocks).isdisjoint(stack)
    ]
    further: dict[nn.Module, int] = {}  # how many blocks a computed one stands for besides itself
    try:
        for parent, name, stack in stacks:
            computed: list[nn.Module] = []
            for _, equal in groupby(stack, _kind):
                row = list(equal)
                few = row[:2] + [block for block in row[2:] if block is blocks[-1]]
                computed += few
                if len(row) > len(few):
                    further[row[1]] = len(row) - len(few)
            setattr(parent, name, nn.ModuleList(computed))
        yield further
    finally:
        for parent, name, stack in stacks:
            setattr(parent, name, stack)


def decoding_flop(vae: Autoencoder, latents: Sequence[int]) -> int:
    """Count the FLOP of decoding a video with latents [C, F, H, W]; each from the third on costs the same.

    Args:
        vae: on the meta device; it decodes the latents one after the other.
        latents: the shape.
    """
    channels, frames, height, width = latents

    @torch.no_grad()
    def count(some: int) -> int:
        with FlopCounterMode(display=False) as counter:
            vae.decode(torch.empty(1, channels, some, height, width, dtype=vae.dtype, device="meta"))
        total: int = counter.get_total_flops()
        return total

    if frames <= 3:
        return count(frames)
    three = count(3)
    return three + (frames - 3) * (three - count(2))


def _kind(block: nn.Module) -> Any:
    """Return what is equal for blocks that cost the same."""
    weights = [(name, weight.shape, weight.requires_grad) for name, weight in block.named_parameters()]
    return type(block), weights


def _count_pass(
    family: Family,
    network: nn.Module,
    inputs: tuple[Tensor, Tensor, PromptEmbeddings],
    further: Mapping[nn.Module, int],
) -> PassCost:
    counted = _Pass(network)
    hooks = [hook for block in repeated_blocks(network) for hook in counted.watch(block)]
    try:
        with counted:
            with FusedAttention(), counted.saving():
                velocity = family.velocity(*inputs)
            counted.goes_back = True
            velocity.backward(torch.empty_like(velocity))
    finally:
        for hook in hooks:
            hook.remove()
        network.zero_grad(set_to_none=True)
    outside, *blocks = counted.parts
    largest = max((block.kept for block in blocks), default=0)
    total = replace(outside.cost, kept_checkpointed=outside.kept + largest)
    for block in blocks:
        total += block.cost * (1 + further.get(block.module, 0))
    return total


def make_inputs(
    family: Family, network: nn.Module, prompt_tokens: int, dtype: torch.dtype, pictures: int = 1
) -> tuple[Tensor, Tensor, PromptEmbeddings]:
    """Return the arguments of `Family.velocity` for one sample; only masks have values."""
    config: Mapping[str, Any] = network.config  # type: ignore[assignment]
    widths = ("joint_attention_dim", "caption_channels", "cap_feat_dim", "cross_attention_dim", "text_dim")
    width = next(width for key in widths if (width := config.get(key)))
    pooled = config.get("pooled_projection_dim") or 1
    if sizes := config.get("addition_time_embed_dim"):  # SDXL's UNet is given six numbers besides
        pooled = config["projection_class_embeddings_input_dim"] - 6 * sizes
    if editing := as_editing(family):
        image = image_size(editing)
        prompt_tokens += pictures * editing.picture_tokens(*image)
    shapes = {"tokens": (prompt_tokens, width), "pooled": (pooled,), "attended": (prompt_tokens,)}
    tensors = {name: torch.empty(1, *shape, device="meta", dtype=dtype) for name, shape in shapes.items()}
    tensors["mask"] = torch.ones(1, prompt_tokens, dtype=torch.bool)
    if editing:
        latents = torch.empty(1, *editing.condition_shape(*image), device="meta", dtype=dtype)
        tensors |= name_latents([[latents] * pictures])
    xt = torch.empty(1, *family.latent_shape, device="meta", dtype=dtype)
    return xt, torch.empty(1, device="meta"), PromptEmbeddings(tensors, (prompt_tokens,))


@dataclass
class _Part:
    """What one block, or all that is outside of blocks, adds to a pass."""

    module: nn.Module
    inputs: int = 0  # bytes of the tensors that a block is given
    kept: int = 0
    forward: int = 0
    backward: int = 0

    @property
    def cost(self) -> PassCost:
        return PassCost(self.forward, self.backward, self.kept, kept_checkpointed=self.inputs)


class _Pass(TorchDispatchMode):
    """Count FLOP, and bytes of the storages that the forward pass keeps for the backward pass, by blocks.

    Autograd takes the operations in the opposite order. When it comes to the outputs of a block, it has done
    with all that followed.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parts = [_Part(network)]  # then the blocks in their order
        self._now, self.goes_back = 0, False
        # Storages that are counted; those of the weights are there anyway.
        self._seen = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
        self._alive: list[Tensor] = []  # or an address would be used again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            flops, part = formula(*args, **(kwargs or {}), out_val=output), self.parts[self._now]
            if self.goes_back:
                part.backward += flops
            else:
                part.forward += flops
        return output

    def saving(self) -> Any:
        return torch.autograd.graph.saved_tensors_hooks(self._save, lambda tensor: tensor)

    def _save(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._alive.append(tensor)
            self.parts[self._now].kept += storage.nbytes()
        return tensor

    def watch(self, block: nn.Module) -> tuple[Any, Any]:
        """Assign what is computed and kept while `block` runs, and what then goes back through it, to it."""

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            self._now = len(self.parts)
            self.parts.append(_Part(module, sum(value.nbytes for value in given if value.requires_grad)))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            place, self._now = self._now, 0

            def come_back(gradient: Tensor) -> None:
                if not self._now or place < self._now:
                    self._now = place

            for tensor in output if isinstance(output, tuple) else (output,):
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(come_back)

        return block.register_forward_pre_hook(enter, with_kwargs=True), block.register_forward_hook(leave)
