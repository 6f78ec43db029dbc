"""Declare the members of diffusers' objects that marble uses; a type checker cannot read diffusers itself.

`Network` and `Autoencoder` are classes because a protocol cannot extend `nn.Module`; neither is created.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Network(nn.Module):
    """A diffusers transformer or UNet with peft's adapter methods."""

    config: Mapping[str, Any]
    to_json_string: Callable[[], str]  # of `config`
    enable_gradient_checkpointing: Callable[[], None]
    add_adapter: Callable[..., None]
    peft_config: dict[str, Any]  # by adapter
    load_lora_adapter: Callable[..., None]


class Autoencoder(nn.Module):
    """A diffusers VAE."""

    config: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype
    encode: Callable[..., tuple[Any, ...]]  # with return_dict=False: the distribution of the latents
    decode: Callable[..., tuple[Tensor, ...]]  # with return_dict=False: the pixels


class TextEncoder(nn.Module):
    """A text encoder of transformers."""

    config: "PretrainedConfig"
    device: torch.device


class Scheduler(Protocol):
    """A diffusers scheduler."""

    config: Mapping[str, Any]
    sigmas: Tensor  # [steps + 1] float32, falling to 0
    timesteps: Tensor  # [steps]
    init_noise_sigma: float  # that noise is multiplied with at the start of a trajectory

    def set_begin_index(self, begin_index: int) -> None:
        """Start the next trajectory at this index of `timesteps`."""
        ...

    def step(
        self, model_output: Tensor, timestep: Tensor, sample: Tensor, *, return_dict: bool
    ) -> tuple[Tensor]:
        """Take one step of the solver from `sample`."""
        ...


class Pipeline(Protocol):
    """A diffusers pipeline of any supported family."""

    transformer: Network  # of some families
    unet: Network  # of the others
    vae: Autoencoder
    scheduler: Scheduler
    config: Mapping[str, Any]
    components: Mapping[str, Any]  # by the names in model_index.json; None if a component is not loaded
    vae_scale_factor: int  # pixels that one latent spans on a side
    image_processor: Any  # diffusers' VaeImageProcessor
    encode_prompt: Callable[..., tuple[Any, ...]]  # arguments and results differ by family
