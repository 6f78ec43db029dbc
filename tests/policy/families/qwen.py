"""Make tiny random pipelines of Qwen-Image and Qwen-Image-Edit, of the real classes."""

from typing import Any

import torch

from tests.policy.families.components import picture_processor, qwen_tokenizer


def qwen_image(kind: str = "QwenImagePipeline", **transformer_config: Any) -> Any:
    """A pipeline of a class; those that edit have a processor, whose tokens of vision their encoder knows."""
    import diffusers
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vae = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.3, -0.2, 0.1, 0.4],
        latents_std=[1.2, 0.8, 1.5, 0.9],
    )
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(6.0)  # else all pictures are grey
    text = {
        "vocab_size": 1000,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=996,
        video_token_id=997,
        vision_start_token_id=998,
        vision_end_token_id=999,
    )
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(2, 2, 4),
        **transformer_config,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        base_image_seq_len=4,
        max_image_seq_len=64,
        shift_terminal=0.02,
    )
    edits = kind != "QwenImagePipeline"
    pipeline = getattr(diffusers, kind)(
        scheduler=scheduler,
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        **({"processor": None} if edits else {}),
    )
    tokenizer = qwen_tokenizer(pipeline.prompt_template_encode)
    if edits:
        pipeline.register_modules(processor=picture_processor(tokenizer))
        config.image_token_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    encoder = Qwen2_5_VLForConditionalGeneration(config)
    pipeline.register_modules(tokenizer=tokenizer, text_encoder=encoder)
    return pipeline
