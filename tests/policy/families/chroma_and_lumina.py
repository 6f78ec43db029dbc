"""Make tiny random pipelines of Chroma and of Lumina-Image 2.0."""

from typing import Any

from tests.policy.families.components import autoencoder_kl, gemma2, t5


def chroma() -> Any:
    from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

    encoder, tokenizer = t5()
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(2, 2, 4),
        approximator_num_channels=16,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0),
        vae=autoencoder_kl(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )


def lumina2() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel

    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=4,
        axes_dim_rope=(2, 2, 4),
        axes_lens=(128, 32, 32),
        cap_feat_dim=16,
    )
    pipeline = Lumina2Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=autoencoder_kl(shrinks=8),  # as this pipeline takes every VAE to do
        text_encoder=None,
        tokenizer=None,
    )
    encoder, tokenizer = gemma2(pipeline.system_prompt)
    pipeline.register_modules(text_encoder=encoder, tokenizer=tokenizer)
    return pipeline
