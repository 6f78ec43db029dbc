"""LoRAs of other programs fit every family: the layers' own names, and those that diffusers converts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor

from marble_cli.errors import CheckpointError
from marble_cli.policy.foreign import convert_lora, fit_lora, lora_settings
from tests.policy.families.cases import Case, load_plain
from tests.policy.families.pipelines import ONE_PER_NETWORK

A, B = ".lora_A.weight", ".lora_B.weight"


def added(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a LoRA of scale 1 adds to each layer."""
    return {
        key.removesuffix(A): state[key.replace(A, B)].double() @ value.double()
        for key, value in state.items()
        if key.endswith(A)
    }


def comfyui(key: str) -> str:
    return f"diffusion_model.{key.partition('.')[2]}"


def flat(key: str) -> str:
    layer, part = key.partition(".")[2].rsplit(".lora_", 1)
    return f"lora_unet_{layer.replace('.', '_')}.lora_{'down' if part[0] == 'A' else 'up'}.weight"


@pytest.mark.parametrize("case", ONE_PER_NETWORK, indirect=True)
@pytest.mark.parametrize("name", [str, comfyui, flat])
def test_a_lora_adds_what_it_states_in_every_family(case: Case, name: Any) -> None:
    """With an alpha of 1.5 times the rank in a tensor of every layer."""
    state = case.policy.trained_state()
    rank = next(value.shape[0] for key, value in state.items() if key.endswith(A))
    tensors = {name(key): value for key, value in state.items()}
    for key in [key for key in state if key.endswith(A)]:
        stem = name(key).removesuffix(A).removesuffix(".lora_down.weight")
        tensors[f"{stem}.alpha"] = torch.tensor(1.5 * rank)
    converted = convert_lora(tensors, {}, None, case.model, "file")
    expected = added(state)
    got = added(converted)
    assert got.keys() == expected.keys()
    for layer, value in expected.items():
        torch.testing.assert_close(got[layer], 1.5 * value)
    shapes = {key: value.shape for key, value in case.policy.parameters("trained").items()}
    settings = lora_settings(converted)
    assert settings.rank == rank
    fitted = fit_lora(converted, case.model, shapes, "file", 0)
    for layer, value in added(fitted).items():
        torch.testing.assert_close(value * case.model.lora.alpha / case.model.lora.rank, got[layer])


@pytest.mark.parametrize(
    ("case", "layer", "stem", "parts"),
    [
        ("flux_dev", "transformer_blocks.0.attn.to_q", "double_blocks_0_img_attn_qkv", 3),
        (
            "sdxl",
            "up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0",
            "output_blocks_1_1_transformer_blocks_0_attn1_to_out_0",
            1,
        ),
    ],
    indirect=["case"],
    ids=["flux_dev", "sdxl"],
)
def test_kohyas_names_are_converted_as_diffusers_does(
    case: Case, layer: str, stem: str, parts: int, tmp_path: Path
) -> None:
    """As the original models have them: FLUX.1's hold query, key and value at once."""
    linear = getattr(case.plain, case.network).get_submodule(layer)
    draw, stem = torch.Generator().manual_seed(0), f"lora_unet_{stem}"
    tensors = {
        f"{stem}.lora_down.weight": torch.randn(4, linear.in_features, generator=draw),
        f"{stem}.lora_up.weight": torch.randn(parts * linear.out_features, 4, generator=draw),
        f"{stem}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, tmp_path / "kohya.safetensors")
    pipeline = load_plain(case.model.path)
    pipeline.load_lora_weights(tmp_path / "kohya.safetensors", adapter_name="given")
    expected = {
        f"{case.network}.{name}": part.get_delta_weight("given").double()
        for name, part in getattr(pipeline, case.network).named_modules()
        if isinstance(part, BaseTunerLayer)
    }
    got = added(convert_lora(load_file(tmp_path / "kohya.safetensors"), {}, None, case.model, "file"))
    assert len(got) == parts
    for name, value in got.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", ["flux_dev"], indirect=True)
@pytest.mark.parametrize(
    "stems",
    [
        (
            "transformer.single_transformer_blocks.0.proj_out",
            "proj_out",
            "transformer_blocks.0.attn.to_out.0",
        ),
        (
            "lora_unet_single_blocks_0_linear2",
            "lora_unet_final_layer_linear",
            "lora_unet_double_blocks_0_img_attn_proj",
        ),
    ],
    ids=["diffusers", "kohya"],
)
def test_an_alpha_scales_its_own_layer_alone(case: Case, stems: tuple[str, ...]) -> None:
    """Also where another layer's name ends alike, and where diffusers drops it, at the last layer."""
    layers = ("single_transformer_blocks.0.proj_out", "proj_out", "transformer_blocks.0.attn.to_out.0")
    tensors, expected, draw = dict[str, Tensor](), dict[str, Tensor](), torch.Generator().manual_seed(0)
    for stem, layer, alpha in zip(stems, layers, (3.0, 1.0, None), strict=True):
        linear = case.plain.transformer.get_submodule(layer)
        down = torch.randn(2, linear.in_features, generator=draw)
        up = torch.randn(linear.out_features, 2, generator=draw)
        tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        tensors |= {} if alpha is None else {f"{stem}.alpha": torch.tensor(alpha)}
        expected[f"transformer.{layer}"] = up.double() @ down.double() * (1 if alpha is None else alpha / 2)
    got = added(convert_lora(tensors, {}, None, case.model, "file"))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


T5 = "lora_te3_encoder_block_0"


@pytest.mark.parametrize(
    ("case", "stem", "extra"),
    [
        ("sd3", "transformer.transformer_blocks.0.attn.to_q", "{stem}.dora_scale"),
        ("flux_dev", "lora_unet_double_blocks_0_img_attn_proj", "{stem}.dora_scale"),
        ("flux_dev", "lora_unet_double_blocks_0_img_attn_proj", "{stem}.diff_b"),
        ("wan", "diffusion_model.blocks.0.self_attn.q", "diffusion_model.blocks.0.self_attn.norm_q.diff"),
        ("wan", "diffusion_model.blocks.0.self_attn.q", "diffusion_model.blocks.0.diff_m"),
        (
            "flux_dev",
            "lora_unet_double_blocks_0_img_attn_proj",
            f"{T5}_layer_0_SelfAttention_q.lora_up.weight",
        ),
        ("flux_dev", "lora_unet_double_blocks_0_img_attn_proj", f"{T5}.diff_b"),
        (
            "flux_dev",
            "lora_unet_double_blocks_0_img_attn_proj",
            "double_blocks.0.txt_attn.proj.lora_up.weight",
        ),
        ("flux_dev", "transformer.transformer_blocks.0.attn.to_q", "text_encoder.x.lora_down.weight"),
        ("flux2", "lora_unet_double_blocks_0_img_attn_proj", "lora_unet_guidance_in_in_layer.lora_up.weight"),
        ("flux2", "lora_unet_double_blocks_0_img_attn_proj", "lora_te_x.lora_down.weight"),
        ("flux2", "lora_unet_double_blocks_0_img_attn_proj", "{stem}.hada_w1_a"),
    ],
    indirect=["case"],
)
def test_what_a_loader_of_diffusers_would_drop_is_refused(case: Case, stem: str, extra: str) -> None:
    """Unless it is zero."""
    extra, layer = extra.format(stem=stem), next(iter(case.policy.trained_state()))
    width = case.policy.trained_state()[layer].shape[1]
    shapes = {"down": (2, width), "up": (width, 2)}
    tensors = {f"{stem}.lora_{part}.weight": torch.ones(shape) for part, shape in shapes.items()}
    plain = convert_lora(tensors, {}, None, case.model, "file")
    with pytest.raises(CheckpointError, match=rf"^file does not fit .*: {extra} \[4\] belongs to no"):
        convert_lora(tensors | {extra: torch.tensor([0, 0, 0.5, 0])}, {}, None, case.model, "file")
    left_out = {extra: torch.zeros(4)}
    assert convert_lora(tensors | left_out, {}, None, case.model, "file").keys() == plain.keys()
