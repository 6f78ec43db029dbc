"""Policies with a step's images and rewards to measure on: the embedded model, and a larger one made in memory."""

from dataclasses import dataclass, replace

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from marble_cli.config.compose import compose
from marble_cli.config.schema import ModelConfig, RunConfig
from marble_cli.policy.base import PromptEmbeddings
from marble_cli.policy.families.sd3 import SD3
from marble_cli.policy.load import load_policy, pick_device
from marble_cli.policy.pipeline import PipelinePolicy
from marble_cli.policy.source import DTYPES
from marble_cli.step.batches import TrainingSet
from marble_cli.step.reward_signal import Signal, read_signal

REWARDS = 8  # of which a measurement takes the first K
GROUP_SIZE = 4


@dataclass(frozen=True)
class Scene:
    """A policy and one step of one micro-batch: `data`, and what `REWARDS` random rewards say of it."""

    name: str
    config: RunConfig
    policy: PipelinePolicy
    data: TrainingSet
    signal: Signal

    def rewards(self, count: int) -> Signal:
        """The first `count` rewards' part of the signal."""
        whole = self.signal
        return Signal(
            whole.rewards[:count], whole.applicable[:count], whole.groups, whole.advantage[:count],
            whole.optimality[:count],
        )  # fmt: skip

    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.policy.parameters("trained").values())


def random_policy(transformer: SD3Transformer2DModel, model: ModelConfig) -> PipelinePolicy:
    """A transformer with its LoRA pair, without text encoders and with a VAE that nothing is decoded by."""
    vae = AutoencoderKL(latent_channels=transformer.config.in_channels)
    pipeline = StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(), vae, *[None] * 6
    )  # text encoders and tokenizers
    side = transformer.config.sample_size * pipeline.vae_scale_factor
    model = replace(model, resolution=side)
    pipeline.to(DTYPES[model.precision])
    return PipelinePolicy(pipeline, SD3(pipeline, model), model, pick_device(model.device), seed=0)


def tiny_scene(images: int) -> Scene:
    """The embedded model with the settings of its preset."""
    config = compose(["preset=tiny"])
    policy = load_policy(config.model, seed=0)
    embeddings = policy.encode(["a red circle above a blue square"] * images)
    tokens = policy.transformer.config["sample_size"] ** 2 // 4
    name = f"tiny: 3.5 M parameters, LoRA rank {config.model.lora.rank}, {images} images of {tokens} tokens"
    return make_scene(name, config, policy, embeddings)


def random_scene(layers: int, heads: int, side: int, images: int, text_tokens: int = 32) -> Scene:
    """A random model of `layers` blocks of width 64 `heads` over latents of `side`, with the paper's LoRA of rank 32.

    It is float32 on a CPU and bfloat16 under autocast on a GPU.
    """
    width, device = 64 * heads, pick_device("auto")
    precision = "bf16" if device.type == "cuda" else "fp32"
    overrides = (
        "model.lora.rank=32",
        "model.lora.alpha=64",
        f"model.precision={precision}",
        "algorithm.kl_coef=1e-4",
    )
    config = compose(["preset=tiny", *overrides])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = SD3Transformer2DModel(
            sample_size=side, patch_size=2, in_channels=16, out_channels=16, num_layers=layers, attention_head_dim=64,
            num_attention_heads=heads, joint_attention_dim=width, caption_projection_dim=width,
            pooled_projection_dim=width, pos_embed_max_size=side, qk_norm="rms_norm",
        )  # fmt: skip
        tokens, pooled = torch.randn(images, text_tokens, width), torch.randn(images, width)
    size = sum(parameter.numel() for parameter in transformer.parameters())
    policy = random_policy(transformer, config.model)
    embeddings = PromptEmbeddings(
        {"tokens": tokens.to(device, policy.dtype), "pooled": pooled.to(device, policy.dtype)}
    )
    name = (
        f"random SD3: {size / 1e6:.0f} M parameters, LoRA rank 32, {images} images of {side**2 // 4} tokens"
    )
    return make_scene(name, config, policy, embeddings)


def make_scene(name: str, config: RunConfig, policy: PipelinePolicy, embeddings: PromptEmbeddings) -> Scene:
    """Random latents and rewards; each reward leaves out 30 to 60 % of the images, as rewards of one source do."""
    draw = torch.Generator().manual_seed(0)
    images = len(embeddings)
    groups = torch.arange(images) // GROUP_SIZE
    applicable = torch.zeros(REWARDS, images, dtype=torch.bool)
    for row, share in zip(applicable, torch.linspace(0.4, 0.7, REWARDS).tolist(), strict=True):
        row[torch.randperm(images, generator=draw)[: round(share * images)]] = True
    rewards = torch.randn(REWARDS, images, generator=draw, dtype=torch.float64) * applicable
    _part_adapters(policy, draw)
    own = torch.arange(images)
    x0 = torch.randn(images, *policy.latent_shape, generator=draw).to(policy.device)
    times = torch.rand(images, 1, generator=draw) * 0.8 + 0.1
    config = replace(config, trainer=replace(config.trainer, micro_batch_size=images))
    signal = read_signal(rewards, applicable, groups, config.algorithm)
    return Scene(name, config, policy, TrainingSet(x0, embeddings, own, own, times, images), signal)


@torch.no_grad()
def _part_adapters(policy: PipelinePolicy, draw: torch.Generator) -> None:
    """Let trained, behaviour and base velocities differ, as they do once a run is under way."""
    for adapter in ("trained", "behaviour"):
        for name, parameter in policy.parameters(adapter).items():
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=draw))
