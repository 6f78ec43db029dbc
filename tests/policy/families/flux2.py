"""Make tiny random pipelines of FLUX.2, of the real classes."""

import inspect
from typing import Any

import pytest
import torch

from tests.policy.families.components import CHAT, published, qwen_tokenizer

FIRST = (1, 2, 3)


def taken_outputs(kind: Any) -> tuple[int, ...]:
    """The layers of the text encoder whose outputs the pipeline takes, counted from 1."""
    taken: tuple[int, ...] = (
        inspect.signature(kind.encode_prompt).parameters["text_encoder_out_layers"].default
    )
    return taken


def take_first_outputs(change: pytest.MonkeyPatch) -> None:
    """The pipelines take the outputs of the first layers, so that encoders of four layers will do."""
    from diffusers import Flux2KleinPipeline, Flux2Pipeline

    for kind in (Flux2Pipeline, Flux2KleinPipeline):
        taken = taken_outputs(kind)
        assert len(taken) == len(FIRST)
        for method in (kind.encode_prompt, kind.__call__):
            function: Any = inspect.unwrap(method)
            assert function.__defaults__.count(taken) == 1
            first = tuple(FIRST if value == taken else value for value in function.__defaults__)
            change.setattr(function, "__defaults__", first)


def flux2_parts(guided: bool, width: int) -> dict[str, Any]:
    """The parts of FLUX.2's pipelines but for the text encoder, whose embeddings are `width` wide."""
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel

    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )
    with torch.no_grad():
        vae.bn.running_mean.normal_(std=0.3)
        vae.bn.running_var.uniform_(0.5, 2.0)
        vae.decoder.conv_out.weight.mul_(2.0)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=width,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=guided,
    )
    with torch.no_grad():  # else prompts and pictures hardly act
        for name, part in transformer.named_children():
            if name.endswith(("modulation", "modulation_img", "modulation_txt")):
                part.linear.weight.mul_(8.0)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return {"vae": vae, "transformer": transformer, "scheduler": scheduler}


def flux2_klein() -> Any:
    from diffusers import Flux2KleinPipeline
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = qwen_tokenizer("user\nassistant\n")
    tokenizer.chat_template = CHAT
    config = Qwen3Config(
        vocab_size=1000,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=max(taken_outputs(Flux2KleinPipeline)) + 1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    return Flux2KleinPipeline(
        text_encoder=Qwen3ForCausalLM(config), tokenizer=tokenizer, **flux2_parts(False, 24)
    )


def flux2() -> Any:
    from diffusers import Flux2Pipeline
    from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
    from transformers import (
        Mistral3Config,
        Mistral3ForConditionalGeneration,
        MistralConfig,
        PixtralVisionConfig,
    )

    tokenizer = qwen_tokenizer(f"system\nuser\n{SYSTEM_MESSAGE}")
    template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}<|im_end|>{% endfor %}"
    )
    text = MistralConfig(
        vocab_size=1000,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=max(taken_outputs(Flux2Pipeline)) + 1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    vision = PixtralVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28
    )
    config = Mistral3Config(text_config=text, vision_config=vision)
    return Flux2Pipeline(
        text_encoder=Mistral3ForConditionalGeneration(config),
        tokenizer=published("PixtralProcessor")(tokenizer, chat_template=template),
        **flux2_parts(True, 24),
    )
