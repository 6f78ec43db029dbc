"""Know which layers of each model family ComfyUI's LoRA loader maps, by diffusers' names.

Keys in a file are diffusers' own, `transformer.LAYER.lora_A.weight`; those of a UNet are kohya's. ComfyUI
skips what it does not map and only logs that.

Source: comfy/lora.py at 17358c8 and comfy/utils.py at 09708ea of Comfy-Org/ComfyUI (`model_lora_keys_unet`,
`mmdit_to_diffusers`, `flux_to_diffusers`, `z_image_to_diffusers`, `unet_to_diffusers`). ComfyUI uses
diffusers' names for Qwen-Image.
"""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from marble_cli.checkpoint.lora import prefix
from marble_cli.errors import RequestError

_JOINT_ATTENTION = r"attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
_JOINT_BLOCK = rf"{_JOINT_ATTENTION}|norm1(_context)?\.linear|ff(_context)?\.net\.(0\.proj|2)"
_UNET = (
    r"(down_blocks\.\d+|up_blocks\.\d+|mid_block)\.attentions\.\d+\."
    r"(proj_in|proj_out|transformer_blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0)|ff\.net\.(0\.proj|2)))"
)
_EMBEDDED_TIME = r"time_text_embed\.(timestep|text|guidance)_embedder\.linear_[12]"
_FLUX = (
    rf"transformer_blocks\.\d+\.({_JOINT_BLOCK})"
    r"|single_transformer_blocks\.\d+\.(attn\.to_[qkv]|norm\.linear|proj_mlp|proj_out)"
    rf"|{_EMBEDDED_TIME}|x_embedder|context_embedder|norm_out\.linear|proj_out"
)
_QWEN = (
    rf"transformer_blocks\.\d+\.({_JOINT_ATTENTION}|(img|txt)_(mod\.1|mlp\.net\.(0\.proj|2)))"
    rf"|{_EMBEDDED_TIME}|img_in|txt_in|norm_out\.linear|proj_out"
)
MAPPED = {
    "SD3": rf"transformer_blocks\.\d+\.({_JOINT_BLOCK}|attn2\.(to_[qkv]|to_out\.0))"
    rf"|{_EMBEDDED_TIME}|context_embedder|norm_out\.linear|proj_out",
    "Flux": _FLUX,
    "FluxKontext": _FLUX,
    # ComfyUI takes Chroma for a FLUX.1; it has no layers of modulation.
    "Chroma": rf"transformer_blocks\.\d+\.({_JOINT_ATTENTION}|ff(_context)?\.net\.(0\.proj|2))"
    r"|single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp|proj_out)"
    r"|x_embedder|context_embedder|proj_out",
    "QwenImage": _QWEN,
    "QwenImageEdit": _QWEN,
    "QwenImageEditPlus": _QWEN,
    "ZImage": r"(layers|context_refiner|noise_refiner)\.\d+\."
    r"(attention\.(to_[qkv]|to_out\.0)|feed_forward\.w[123]|adaLN_modulation\.0)"
    r"|all_x_embedder\.2-1|all_final_layer\.2-1\.(linear|adaLN_modulation\.1)"
    r"|cap_embedder\.1|t_embedder\.mlp\.[02]",
    "SDXL": _UNET,
    "SD15": _UNET,
}


def check_mapped(layers: Sequence[str], family: str | None) -> None:
    """Refuse a LoRA of which ComfyUI would skip a part.

    Args:
        layers: the names of the layers that the LoRA adapts.
        family: the name of the model's family; None if an older checkpoint does not state it.

    Raises:
        RequestError: the family is not mapped, or a layer is not.
    """
    known = list(MAPPED) if family is None else [family]
    unmapped = [[name for name in layers if not re.fullmatch(MAPPED.get(key, "(?!)"), name)] for key in known]
    missing = min(unmapped, key=len)
    if not missing:
        return
    if len(missing) == len(layers) and family not in MAPPED:
        model = family or "this model"
        raise RequestError(
            f"--format comfyui: ComfyUI's loader does not map a LoRA of {model} (layer {missing[0]}). "
            f"Expected a model of {', '.join(MAPPED)}, or --format diffusers or peft."
        )
    raise RequestError(
        f"--format comfyui: ComfyUI's loader does not map the layer {missing[0]} ({len(missing)} of "
        f"{len(layers)} layers) and would leave its LoRA out. Expected other model.lora.target_modules, or "
        "--format diffusers or peft."
    )


def comfyui_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a LoRA by the names that ComfyUI maps; of a UNet, kohya's: lora_unet_LAYER.lora_down.weight."""
    if prefix(weights) != "unet.":
        return dict(weights)
    named = {}
    for key, value in weights.items():
        layer, _, part = key.removeprefix("unet.").rpartition(".lora_")
        named[f"lora_unet_{layer.replace('.', '_')}.lora_{'down' if part[0] == 'A' else 'up'}.weight"] = value
    return named
