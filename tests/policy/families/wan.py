"""Make tiny random pipelines of Wan 2.1 and of Wan 2.2 TI2V, of the real classes."""

from typing import Any

import torch

from tests.policy.families.components import t5


def wan(ti2v: bool = False) -> Any:
    """TI2V's VAE has patches and shortcuts, and its pipeline gives every token a time of its own."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    encoder, tokenizer = t5()
    patches = {"patch_size": 2, "in_channels": 12, "out_channels": 12, "is_residual": True}
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.3, -0.2, 0.1, 0.4],
        latents_std=[1.2, 0.8, 1.5, 0.9],
        scale_factor_spatial=8 if ti2v else 4,
        **(patches if ti2v else {}),
    )
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(6.0)  # else all frames are grey
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=8,
        ffn_dim=768,  # else what is kept in float32 is no small share of the network
        num_layers=2,
        rope_max_seq_len=32,
    )
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(UMT5Config(**encoder.config.to_dict())),
        vae=vae,
        transformer=transformer,
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        expand_timesteps=ti2v,
    )
