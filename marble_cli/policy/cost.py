"""Count what a training pass of one sample costs, by a pass over tensors that have shapes and no storage."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from marble_cli.policy.base import Family, PromptEmbeddings
from marble_cli.policy.diffusers_types import Autoencoder
from marble_cli.policy.editing import as_editing
from marble_cli.policy.model_size import PassCost
from marble_cli.policy.trainable.blocks import repeated_blocks

# From this number on, equal blocks in a row are counted by what one more of them adds to a pass.
MANY = 8


def pass_cost(family: Family, network: nn.Module, prompt_tokens: int, dtype: torch.dtype) -> PassCost:
    """Count the FLOP and the kept bytes of a velocity and its gradient, for one image at one time.

    Of many equal blocks in a row, two are computed. Each further one adds what a third adds to these.

    Args:
        family: the family of a pipeline whose network is `network`.
        network: on the meta device; parameters that are trained require gradients.
        prompt_tokens: the length of the prompt's embeddings.
        dtype: the type to compute in.
    """
    nn.Module.to(network, dtype)  # past the warnings of diffusers' own
    inputs = make_inputs(family, network, prompt_tokens, dtype)
    stacks = {name: child for name, child in network.named_children() if isinstance(child, nn.ModuleList)}
    rows = {name: [list(row) for _, row in groupby(stack, _kind)] for name, stack in stacks.items()}

    def count(longer: list[nn.Module] | None = None) -> PassCost:
        for name, parts in rows.items():
            kept = [row[: 2 + (row is longer)] if len(row) >= MANY else row for row in parts]
            setattr(network, name, nn.ModuleList(chain(*kept)))
        return _count_pass(family, network, inputs)

    try:
        total = few = count()
        for row in chain(*rows.values()):
            if len(row) >= MANY:
                total += (count(row) - few) * (len(row) - 2)
    finally:
        for name, stack in stacks.items():
            setattr(network, name, stack)
    return total


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
            vae.decode(torch.empty(1, channels, some, height, width, device="meta"))
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
    family: Family, network: nn.Module, inputs: tuple[Tensor, Tensor, PromptEmbeddings]
) -> PassCost:
    kept = _Kept({parameter.untyped_storage()._cdata for parameter in network.parameters()})
    hooks = [hook for block in repeated_blocks(network) for hook in kept.watch(block)]
    try:
        with FlopCounterMode(display=False) as forward, _FusedAttention(), kept.saving():
            velocity = family.velocity(*inputs)
        with FlopCounterMode(display=False) as backward:
            velocity.backward(torch.empty_like(velocity))
    finally:
        for hook in hooks:
            hook.remove()
        network.zero_grad(set_to_none=True)
    return PassCost(
        forward=forward.get_total_flops(),
        backward=backward.get_total_flops(),
        kept=kept.outside + sum(kept.blocks),
        kept_checkpointed=kept.outside + sum(kept.inputs) + max(kept.blocks, default=0),
    )


def make_inputs(
    family: Family, network: nn.Module, prompt_tokens: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, PromptEmbeddings]:
    """Return the arguments of `Family.velocity` for one sample; only masks have values."""
    config: Mapping[str, Any] = network.config  # type: ignore[assignment]
    widths = ("joint_attention_dim", "caption_channels", "cap_feat_dim", "cross_attention_dim", "text_dim")
    width = next(width for key in widths if (width := config.get(key)))
    pooled = config.get("pooled_projection_dim") or 1
    if sizes := config.get("addition_time_embed_dim"):  # SDXL's UNet is given six numbers besides
        pooled = config["projection_class_embeddings_input_dim"] - 6 * sizes
    if editing := as_editing(family):
        prompt_tokens += editing.picture_tokens
    shapes = {"tokens": (prompt_tokens, width), "pooled": (pooled,), "attended": (prompt_tokens,)}
    tensors = {name: torch.empty(1, *shape, device="meta", dtype=dtype) for name, shape in shapes.items()}
    tensors["mask"] = torch.ones(1, prompt_tokens, dtype=torch.bool)
    if editing:
        tensors["condition"] = torch.empty(1, *editing.condition_shape, device="meta", dtype=dtype)
    xt = torch.empty(1, *family.latent_shape, device="meta", dtype=dtype)
    return xt, torch.empty(1, device="meta"), PromptEmbeddings(tensors, (prompt_tokens,))


@dataclass
class _Kept:
    """Storages that a forward pass keeps for the backward pass, with their bytes: per block, and the rest."""

    seen: set[int]  # storages that are counted; those of the weights are there anyway
    outside: int = 0
    blocks: list[int] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)  # bytes of the tensors that each block is given
    alive: list[Tensor] = field(default_factory=list)  # or an address would be used again
    inside: bool = False

    def saving(self) -> Any:
        return torch.autograd.graph.saved_tensors_hooks(self._save, lambda tensor: tensor)

    def _save(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.seen:
            self.seen.add(storage._cdata)
            self.alive.append(tensor)
            if self.inside:
                self.blocks[-1] += storage.nbytes()
            else:
                self.outside += storage.nbytes()
        return tensor

    def watch(self, block: nn.Module) -> tuple[Any, Any]:
        """Assign what is kept while `block` runs to it."""

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            self.inputs.append(sum(value.nbytes for value in given if value.requires_grad))
            self.blocks.append(0)
            self.inside = True

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self.inside = False

        return block.register_forward_pre_hook(enter, with_kwargs=True), block.register_forward_hook(leave)


class _FusedAttention(TorchFunctionMode):
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
