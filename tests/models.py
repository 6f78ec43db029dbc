"""Make a small Stable Diffusion 3 pipeline with random weights."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer


def make_transformer(qk_norm: str | None = "rms_norm", **more: Any) -> Any:
    """Make a transformer of two joint blocks over 4 x 4 latents; without `qk_norm` it runs in float64."""
    return SD3Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16,
        **{"pos_embed_max_size": 4, "qk_norm": qk_norm, **more},
    )  # fmt: skip


def make_pipeline() -> Any:
    """Make a pipeline of every class of the real one except T5; its random weights draw coloured pictures."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(f"{letter}</w>" for letter in alphabet)]
    tokenizer = CLIPTokenizer(
        vocab={token: place for place, token in enumerate(tokens)}, merges=[], model_max_length=24,
        bos_token=tokens[0], eos_token=tokens[1], pad_token=tokens[1],
    )  # fmt: skip
    text = CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=8, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24, projection_dim=8, hidden_act="gelu", bos_token_id=0, eos_token_id=1,
        pad_token_id=1,
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4,
        sample_size=16,
        use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.3, shift_factor=0.1,
    )  # fmt: skip
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(2.0)
    return StableDiffusion3Pipeline(
        transformer=make_transformer(), scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0), vae=vae,
        text_encoder=CLIPTextModelWithProjection(text), tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(text), tokenizer_2=tokenizer,
        text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
