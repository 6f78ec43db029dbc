"""Make tiny random pipelines of every family, of the real classes; tokenizers learn from the templates."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from tokenizers.pre_tokenizers import Metaspace

from tests.models import make_pipeline
from tests.policy.families.components import (
    CHAT,
    autoencoder_kl,
    learn_merges,
    picture_processor,
    qwen_tokenizer,
    t5,
)
from tests.policy.families.flux2 import flux2, flux2_klein
from tests.policy.families.unets import sd15, sdxl


@dataclass(frozen=True)
class Tiny:
    """How to make a pipeline for a choice of conf/model, and how to call it without guidance."""

    choice: str
    make: Callable[[], Any]
    resolution: str
    max_sequence_length: int
    tokens: int
    arguments: dict[str, Any] = field(default_factory=dict)
    packed: bool = False
    overrides: tuple[str, ...] = ()


def sd3() -> Any:
    """The pipeline of the other tests, with T5."""
    pipeline = make_pipeline()
    encoder, tokenizer = t5()
    pipeline.register_modules(text_encoder_3=encoder, tokenizer_3=tokenizer)
    return pipeline


def flux(guided: bool, kontext: bool = False) -> Any:
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        FluxKontextPipeline,
        FluxPipeline,
        FluxTransformer2DModel,
    )
    from transformers import CLIPTextModel

    pipeline = make_pipeline()
    encoder, tokenizer = t5()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=8,
        guidance_embeds=guided,
        axes_dims_rope=(2, 2, 4),
    )
    scheduler = (
        FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=64
        )
        if guided
        else FlowMatchEulerDiscreteScheduler(shift=1.0)
    )
    kind = FluxKontextPipeline if kontext else FluxPipeline
    return kind(
        scheduler=scheduler,
        vae=autoencoder_kl(),
        text_encoder=CLIPTextModel(pipeline.text_encoder.config),
        tokenizer=pipeline.tokenizer,
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
        transformer=transformer,
    )


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


def sana() -> Any:
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

    from marble_cli.policy.families.sana import INSTRUCTION

    blocks: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        blocks |= {
            f"{side}_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
            f"{side}_block_out_channels": (4, 8, 8),
            f"{side}_layers_per_block": (1, 1, 1),
            f"{side}_qkv_multiscales": ((), (), (5,)),
        }
    vae = AutoencoderDC(latent_channels=4, attention_head_dim=4, scaling_factor=0.41407, **blocks)
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    vocabulary, merges = learn_merges("\n".join(INSTRUCTION), specials, Metaspace(prepend_scheme="never"))
    config = Gemma2Config(
        vocab_size=1000,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
    )
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=32,
    )
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=3.0,
        algorithm_type="dpmsolver++",
    )
    return SanaPipeline(
        tokenizer=GemmaTokenizer(vocab=vocabulary, merges=merges),
        text_encoder=Gemma2Model(config),
        vae=vae,
        transformer=transformer,
        scheduler=scheduler,
    )


def z_image() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    tokenizer = qwen_tokenizer("user\nassistant\n")
    tokenizer.chat_template = CHAT
    config = Qwen3Config(
        vocab_size=1000,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=16,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[2, 2, 4],
        axes_lens=[256, 32, 32],
    )
    with torch.no_grad():
        for token in (transformer.x_pad_token, transformer.cap_pad_token):
            token.normal_()
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder_kl(),
        text_encoder=Qwen3Model(config),
        tokenizer=tokenizer,
        transformer=transformer,
    )


TINY = {
    "sd3": Tiny("sd3", sd3, "32x16", 20, 8, {"guidance_scale": 1.0, "max_sequence_length": 20}),
    "flux_dev": Tiny(
        "flux",
        partial(flux, guided=True),
        "48x32",
        20,
        24,
        {"guidance_scale": 2.0, "max_sequence_length": 20},
        True,
        ("model.guidance=2.0",),
    ),
    "flux_schnell": Tiny(
        "flux",
        partial(flux, guided=False),
        "48x32",
        20,
        24,
        {"max_sequence_length": 20},
        True,
        ("model.guidance=null",),
    ),
    "flux_kontext": Tiny(
        "flux_kontext",
        partial(flux, guided=True, kontext=True),
        "48x32",
        20,
        24,
        {"guidance_scale": 2.0, "max_sequence_length": 20, "max_area": 48 * 32, "_auto_resize": False},
        True,
        ("model.guidance=2.0",),
    ),
    "flux2": Tiny(
        "flux2",
        flux2,
        "96x64",
        80,
        96,
        {"guidance_scale": 2.0, "max_sequence_length": 80},
        overrides=("model.guidance=2.0",),
    ),
    "flux2_klein": Tiny(
        "flux2_klein",
        flux2_klein,
        "96x64",
        40,
        96,
        {"guidance_scale": 1.0, "max_sequence_length": 40},
        overrides=("model.guidance=null",),
    ),
    "qwen_image": Tiny("qwen_image", qwen_image, "48x32", 200, 24, {"true_cfg_scale": 1.0}, True),
    "qwen_image_edit": Tiny(
        "qwen_image_edit",
        partial(qwen_image, "QwenImageEditPipeline"),
        "48x32",
        200,
        24,
        {"true_cfg_scale": 1.0},
        True,
    ),
    "qwen_image_edit_plus": Tiny(
        "qwen_image_edit",
        partial(qwen_image, "QwenImageEditPlusPipeline", zero_cond_t=True),
        "48x32",
        200,
        24,
        {"true_cfg_scale": 1.0},
        True,
    ),
    "sana": Tiny("sana", sana, "64x32", 300, 128, {"guidance_scale": 1.0, "use_resolution_binning": False}),
    "z_image": Tiny(
        "z_image", z_image, "48x32", 100, 24, {"guidance_scale": 0.0, "max_sequence_length": 100}
    ),
    "sdxl": Tiny("sdxl", sdxl, "24x16", 0, 24, {"guidance_scale": 1.0}),
    "sd15": Tiny("sd15", sd15, "16x24", 0, 24, {"guidance_scale": 1.0}),
}


# The two families with a UNet differ in what `test_pipelines.py` compares; elsewhere one stands for both.
ONE_UNET = [name for name in TINY if name != "sd15"]
TRANSFORMERS = [name for name in ONE_UNET if name != "sdxl"]
EDITS = ["flux_kontext", "flux2", "flux2_klein", "qwen_image_edit", "qwen_image_edit_plus"]
