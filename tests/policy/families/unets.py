"""Make tiny random pipelines with a UNet, which predicts noise or v."""

from typing import Any

from tests.models import make_pipeline
from tests.policy.families.components import autoencoder_kl


def unet(**more: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "attention_head_dim": (1, 2),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            **more,
        }
    )


# The noise schedule of Stable Diffusion.
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def sdxl() -> Any:
    """It predicts noise; its scheduler is spaced as in the published model."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextModel

    pipeline = make_pipeline()
    sizes = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    return StableDiffusionXLPipeline(
        vae=autoencoder_kl(),
        text_encoder=CLIPTextModel(pipeline.text_encoder.config),
        text_encoder_2=pipeline.text_encoder_2,
        tokenizer=pipeline.tokenizer,
        tokenizer_2=pipeline.tokenizer_2,
        unet=unet(
            cross_attention_dim=16,
            mid_block_type=None,
            use_linear_projection=True,
            projection_class_embeddings_input_dim=8 + 6 * 4,
            **sizes,
        ),
        scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )


def sd15() -> Any:
    """It predicts v, as the 768 px models of Stable Diffusion 2; its scheduler has another solver."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextModel

    pipeline = make_pipeline()
    return StableDiffusionPipeline(
        vae=autoencoder_kl(),
        text_encoder=CLIPTextModel(pipeline.text_encoder.config),
        tokenizer=pipeline.tokenizer,
        unet=unet(cross_attention_dim=8, sample_size=64),
        scheduler=PNDMScheduler(**BETAS, prediction_type="v_prediction", steps_offset=1, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
