"""Scenes to measure on: a policy with the images and rewards of one step.

The policy is the embedded model, or a larger one that is made in memory.
"""

from dataclasses import dataclass, replace

import diffusers
import torch

from marble_cli.config.compose import compose
from marble_cli.config.schema import ModelConfig, RunConfig
from marble_cli.policy.base import PromptEmbeddings
from marble_cli.policy.families.sd3 import SD3
from marble_cli.policy.load import load_policy, pick_device
from marble_cli.policy.pipeline import PipelinePolicy
from marble_cli.policy.source import DTYPES
from marble_cli.step.batches import TrainingSet
from marble_cli.step.reward_signal import Signal, read_signal

PRESET = (
    "preset=tiny",
    "balance=marble",  # the preset's own takes every refresh in two halves
    "model.compile=false",  # the published refresh takes several backward passes per forward pass
)
REWARDS = 8  # a measurement takes the first K of them
GROUP_SIZE = 4
HEAD_DIM = 64
SD3_TEXT_PARTS = 6  # three text encoders and three tokenizers


@dataclass(frozen=True)
class Scene:
    """A policy and one step whose images fit one micro-batch.

    Attributes:
        name: of the model and its images, for headings.
        config: settings of the step.
        policy: the model, with trained and behaviour adapters.
        data: latents, embeddings and training times.
        signal: the scores of `REWARDS` random rewards, with their advantages.
    """

    name: str
    config: RunConfig
    policy: PipelinePolicy
    data: TrainingSet
    signal: Signal

    def rewards(self, count: int) -> Signal:
        """Return the signal of the first `count` rewards."""
        signal = self.signal
        return replace(
            signal,
            rewards=signal.rewards[:count],
            applicable=signal.applicable[:count],
            advantage=signal.advantage[:count],
            optimality=signal.optimality[:count],
        )

    def parameters(self) -> int:
        """Count the trained numbers."""
        return sum(parameter.numel() for parameter in self.policy.parameters("trained").values())


def random_policy(transformer: diffusers.SD3Transformer2DModel, model: ModelConfig) -> PipelinePolicy:
    """Make a policy of a transformer with its adapters, without text encoders.

    Its VAE only fixes the shape of the latents; nothing is decoded.
    """
    vae = diffusers.AutoencoderKL(latent_channels=transformer.config.in_channels)
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer, diffusers.FlowMatchEulerDiscreteScheduler(), vae, *[None] * SD3_TEXT_PARTS
    )
    side = transformer.config.sample_size * pipeline.vae_scale_factor
    model = replace(model, resolution=side)
    pipeline.to(DTYPES[model.precision])
    return PipelinePolicy(pipeline, SD3(pipeline, model), model, pick_device(model.device), seed=0)


def tiny_scene(images: int) -> Scene:
    """Make a scene of the embedded model with the settings of its preset."""
    config = compose(list(PRESET))
    policy = load_policy(config.model, seed=0)
    embeddings = policy.encode(["a red circle above a blue square"] * images)
    tokens = policy.network.config["sample_size"] ** 2 // 4
    name = f"tiny: 3.5 M parameters, LoRA rank {config.model.lora.rank}, {images} images of {tokens} tokens"
    return make_scene(name, config, policy, embeddings)


def random_scene(layers: int, heads: int, side: int, images: int, text_tokens: int = 32) -> Scene:
    """Make a scene of a random SD3 model with the paper's LoRA of rank 32.

    The model computes in float32 on a CPU, and in bfloat16 on a GPU.

    Args:
        layers: transformer blocks.
        heads: attention heads; the blocks are 64 times as wide.
        side: height and width of the latents.
        images: in the micro-batch.
        text_tokens: per prompt.
    """
    width, device = HEAD_DIM * heads, pick_device("auto")
    precision = "bf16" if device.type == "cuda" else "fp32"
    overrides = (
        "model.lora.rank=32",
        "model.lora.alpha=64",
        f"model.precision={precision}",
        "algorithm.kl_coef=1e-4",
    )
    config = compose([*PRESET, *overrides])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = diffusers.SD3Transformer2DModel(
            sample_size=side,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=layers,
            attention_head_dim=HEAD_DIM,
            num_attention_heads=heads,
            joint_attention_dim=width,
            caption_projection_dim=width,
            pooled_projection_dim=width,
            pos_embed_max_size=side,
            qk_norm="rms_norm",
        )
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
    """Draw random latents, training times and scores for one step.

    Each reward applies to 40 to 70 % of the images, as rewards do that need metadata of one prompt source.
    """
    generator = torch.Generator().manual_seed(0)
    images = len(embeddings)
    groups = torch.arange(images) // GROUP_SIZE
    applicable = torch.zeros(REWARDS, images, dtype=torch.bool)
    for row, share in zip(applicable, torch.linspace(0.4, 0.7, REWARDS).tolist(), strict=True):
        row[torch.randperm(images, generator=generator)[: round(share * images)]] = True
    rewards = torch.randn(REWARDS, images, generator=generator, dtype=torch.float64) * applicable
    _randomise_adapters(policy, generator)
    indices = torch.arange(images)
    x0 = torch.randn(images, *policy.latent_shape, generator=generator).to(policy.device)
    times = torch.rand(images, 1, generator=generator) * 0.8 + 0.1
    config = replace(config, trainer=replace(config.trainer, micro_batch_size=images))
    signal = read_signal(rewards, applicable, groups, config.algorithm)
    data = TrainingSet(x0, embeddings, indices, indices, times, images)
    return Scene(name, config, policy, data, signal)


@torch.no_grad()
def _randomise_adapters(policy: PipelinePolicy, generator: torch.Generator) -> None:
    """Make trained, behaviour and base velocities differ, as they do after the first step of a run."""
    for adapter in ("trained", "behaviour"):
        for name, parameter in policy.parameters(adapter).items():
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
