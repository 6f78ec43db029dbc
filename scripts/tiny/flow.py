"""Train the flow transformer of the tiny model together with its text encoders."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from scripts.tiny.text import text_config
from scripts.tiny.training import DEVICE, Track, Updater

T5_TOKENS = 256  # zero tokens that the plain pipeline appends if it has no T5


def make_flow(tokenizer: CLIPTokenizer) -> tuple[SD3Transformer2DModel, torch.nn.ModuleList]:
    """Make an SD3 transformer and two text encoders with random weights."""
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=8,
        out_channels=8,
        num_layers=6,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=128,
        caption_projection_dim=128,
        pooled_projection_dim=128,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    encoders = [CLIPTextModelWithProjection(text_config(tokenizer, 64, 3, 64)) for _ in range(2)]
    return transformer, torch.nn.ModuleList(encoders)


def encode_prompt(encoders: torch.nn.ModuleList, ids: Tensor, empty: int) -> tuple[Tensor, Tensor]:
    """Embed prompts as `StableDiffusion3Pipeline.encode_prompt` does without T5.

    Args:
        encoders: the two text encoders.
        ids: int64 [B, L].
        empty: zero tokens to append in the place of T5's.

    Returns:
        Token embeddings [B, L + empty, 128] and pooled embeddings [B, 128].
    """
    outputs = [encoder(ids, output_hidden_states=True) for encoder in encoders]
    tokens = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    pooled = torch.cat([output.text_embeds for output in outputs], dim=-1)
    return F.pad(tokens, (0, 0, 0, empty)), pooled


def train_flow(
    tokenizer: CLIPTokenizer, latents: Tensor, ids: Tensor, steps: int, batch: int, draw: torch.Generator
) -> tuple[SD3Transformer2DModel, torch.nn.ModuleList]:
    """Train a rectified flow on latents, and the text encoders along with it.

    Args:
        tokenizer: of the captions.
        latents: float32 [N, 8, 8, 8].
        ids: int64 [N, L], their tokenized captions.
        steps: optimizer steps.
        batch: latents per step; a quarter of them in steps with 256 empty tokens.
        draw: picks latents, times and noise.

    Returns:
        Transformer and text encoders with the moving average of their weights.
    """
    model: Any = torch.nn.ModuleList(make_flow(tokenizer)).to(DEVICE)
    average = copy.deepcopy(model).requires_grad_(False)
    updater = Updater(model, steps, lr=1.5e-3, betas=(0.9, 0.99), weight_decay=0.01)
    track = Track("flow", steps)
    for step in track:
        # The plain pipeline appends 256 zero tokens, so the model learns to ignore any number of them.
        empty = T5_TOKENS if step % 16 == 15 else int(torch.randint(0, 3, (), generator=draw))
        size = batch // 4 if empty == T5_TOKENS else batch
        index = torch.randint(len(latents), (size,), generator=draw)
        x0 = latents[index]
        noise = torch.randn(x0.shape, generator=draw)
        t = torch.sigmoid(torch.randn(size, generator=draw) * 1.1)
        x0, noise, t = x0.to(DEVICE), noise.to(DEVICE), t.to(DEVICE)
        xt = torch.lerp(x0, noise, t[:, None, None, None])
        tokens, pooled = encode_prompt(model[1], ids[index].to(DEVICE), empty)
        velocity = model[0](
            hidden_states=xt,
            timestep=t * 1000,
            encoder_hidden_states=tokens,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
        loss = F.mse_loss(velocity, noise - x0)
        updater.update(loss)
        decay = min(0.997, (step + 1) / (step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        track.show_loss(step, loss.detach())
    average.cpu()
    return average[0].eval(), average[1].eval()
