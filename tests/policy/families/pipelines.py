"""Make tiny random pipelines of every family, of the real classes; tokenizers learn from the templates."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch

from marble_cli.config.compose import compose
from marble_cli.config.schema import ModelConfig
from tests.models import make_pipeline
from tests.policy.families.chroma_and_lumina import chroma, lumina2
from tests.policy.families.components import (
    CHAT,
    autoencoder_kl,
    gemma2,
    qwen_tokenizer,
    t5,
)
from tests.policy.families.flux2 import flux2, flux2_klein
from tests.policy.families.qwen import qwen_image
from tests.policy.families.sd3s import sd3, sd3_medium, sd35_medium
from tests.policy.families.unets import sd15, sdxl
from tests.policy.families.wan import wan


@cache
def configured(choice: str) -> ModelConfig:
    """Return a choice of conf/model as it is without further settings; tests must not change it."""
    return compose([f"model={choice}", "~preset", "data.root=.", "run.dir=unused"]).model


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


def sana() -> Any:
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    from marble_cli.policy.families.sana import INSTRUCTION

    encoder, tokenizer = gemma2("\n".join(INSTRUCTION))
    blocks: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        blocks |= {
            f"{side}_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
            f"{side}_block_out_channels": (4, 8, 8),
            f"{side}_layers_per_block": (1, 1, 1),
            f"{side}_qkv_multiscales": ((), (), (5,)),
        }
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
    vae = AutoencoderDC(latent_channels=4, attention_head_dim=4, scaling_factor=0.41407, **blocks)
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=3.0,
        algorithm_type="dpmsolver++",
    )
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
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
    "sd35_medium": Tiny(
        "sd3", sd35_medium, "32x16", 20, 8, {"guidance_scale": 1.0, "max_sequence_length": 20}
    ),
    "sd3_medium": Tiny("sd3", sd3_medium, "16x32", 0, 8, {"guidance_scale": 1.0, "max_sequence_length": 0}),
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
    "chroma": Tiny(
        "chroma", chroma, "48x32", 20, 24, {"guidance_scale": 1.0, "max_sequence_length": 20}, True
    ),
    "lumina2": Tiny(
        "lumina2", lumina2, "96x64", 100, 24, {"guidance_scale": 1.0, "max_sequence_length": 100}
    ),
    "wan": Tiny(
        "wan",
        wan,
        "48x32",
        20,
        48,
        {"guidance_scale": 1.0, "max_sequence_length": 20, "num_frames": 5},
        overrides=("model.frames=5",),
    ),
    "wan_ti2v": Tiny(
        "wan",
        partial(wan, ti2v=True),
        "48x32",
        20,
        12,
        {"guidance_scale": 1.0, "max_sequence_length": 20, "num_frames": 5},
        overrides=("model.frames=5",),
    ),
    "sdxl": Tiny("sdxl", sdxl, "24x16", 0, 24, {"guidance_scale": 1.0}),
    "sd15": Tiny("sd15", sd15, "16x24", 0, 24, {"guidance_scale": 1.0}),
}


# The two families with a UNet differ in what `test_pipelines.py` compares; elsewhere one stands for both.
ONE_UNET = [name for name in TINY if name != "sd15"]
TRANSFORMERS = [name for name in ONE_UNET if name not in ("sdxl", "sd3_medium")]
# One case stands for each class of network where siblings add nothing: the one with a guidance, a picture or
# more attention.
NETWORKS = {
    "SD3Transformer2DModel": "sd35_medium",
    "FluxTransformer2DModel": "flux_kontext",
    "Flux2Transformer2DModel": "flux2",
    "QwenImageTransformer2DModel": "qwen_image_edit_plus",
    "SanaTransformer2DModel": "sana",
    "ZImageTransformer2DModel": "z_image",
    "ChromaTransformer2DModel": "chroma",
    "Lumina2Transformer2DModel": "lumina2",
    "WanTransformer3DModel": "wan_ti2v",
    "UNet2DConditionModel": "sdxl",
}
ONE_PER_NETWORK = list(NETWORKS.values())
EDITS = ["flux_kontext", "flux2", "flux2_klein", "qwen_image_edit", "qwen_image_edit_plus"]
