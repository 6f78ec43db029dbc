"""Quantise frozen linear layers in place: one byte or half a byte per weight instead of two or four.

Adapters on top of such a layer are ordinary LoRA layers: the layer computes x W^T with its rounded W, and its
backward pass gives the gradient of x.
"""

from collections.abc import Iterator

import torch
from torch import nn

from marble_cli.config.enums import Quantization
from marble_cli.optional import require

# The package of each kind, and its bytes per weight with the scales.
PACKAGES = {Quantization.int8: "torchao", Quantization.fp8: "torchao", Quantization.nf4: "bitsandbytes"}
BYTES = {Quantization.int8: 1.0, Quantization.fp8: 1.0, Quantization.nf4: 0.5 + 1 / 64}
# Kinds whose layers keep a copy of W in the model's precision from a forward pass to its backward pass.
KEEP_COPIES = (Quantization.int8, Quantization.fp8)


def check_quantization(kind: Quantization) -> None:
    """Check that the package of `kind` is installed.

    Raises:
        RequestError: it is not; the message says how to install it.
    """
    if kind is not Quantization.none:
        require(PACKAGES[kind], f"model.quantization={kind.value}")


def quantizable(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Yield the linear layers that are quantised, each with its parent and its name there.

    Left out are layers that transformers keeps in float32, and heads that share the embeddings' weights.
    """
    left_out = {"lm_head", *(getattr(module, "_keep_in_fp32_modules", None) or ())}
    for path, parent in list(module.named_modules()):
        if left_out.isdisjoint(path.split(".")):
            for name, child in parent.named_children():
                if isinstance(child, nn.Linear) and name not in left_out:
                    yield parent, name, child


def quantize(module: nn.Module, kind: Quantization, device: torch.device) -> None:
    """Quantise the linear layers of a frozen module, each on `device`, where they stay.

    - `int8`: whole numbers with a scale per output, rounded to the nearest (torchao).
    - `fp8`: float8_e4m3fn with a scale per output (torchao).
    - `nf4`: 16 quantiles of a normal distribution with a scale of 8 bits per 64 weights (bitsandbytes;
      arXiv 2305.14314).

    Raises:
        RequestError: the package of `kind` is not installed.
    """
    check_quantization(kind)
    for parent, name, layer in quantizable(module) if kind is not Quantization.none else ():
        if kind is Quantization.nf4:
            setattr(parent, name, _as_nf4(layer, device))
        else:
            _round_by_torchao(layer, kind, device)


def _round_by_torchao(layer: nn.Linear, kind: Quantization, device: torch.device) -> None:
    from torchao import quantization

    config = (
        quantization.Int8WeightOnlyConfig
        if kind is Quantization.int8
        else quantization.Float8WeightOnlyConfig
    )
    # Without the settings for compiled code, of which one lets every float32 product round to TF32.
    quantization.quantize_(layer, config(set_inductor_config=False), device=device)


def _as_nf4(layer: nn.Linear, device: torch.device) -> nn.Linear:
    import bitsandbytes

    new: nn.Linear = bitsandbytes.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=layer.weight.dtype,
        quant_type="nf4",
        device="meta",
    )
    new.weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    new.bias = layer.bias
    return new.to(device)  # rounds the weights
