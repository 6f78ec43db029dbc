"""A linear layer with adapters that computes in its input's type, while A and B are kept in float32."""

from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.nn import functional


class LoraLinear(lora.Linear):  # type: ignore[misc]
    """W x + s B A x, where s is alpha / rank; peft makes one of each linear layer that gets adapters.

    peft's own forward casts inputs to the type of A and the result back, and scales and adds in two
    operations. Here these are one, which rounds once.
    """

    def update_layer(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter, as peft does."""
        super().update_layer(adapter_name, *args, **kwargs)
        for matrices in (self.lora_A, self.lora_B):
            matrices[adapter_name] = LoraMatrix.of(matrices[adapter_name])

    def copy_adapter(self, source: str, target: str) -> None:
        """Add an adapter with the settings and weights of another; `update_layer` would draw new weights."""
        settings = (self.r, self.lora_alpha, self.scaling, self.lora_bias, self.use_rslora, self.use_dora)
        for setting in settings:
            setting[target] = setting[source]
        self.lora_dropout[target] = nn.Identity()
        for matrices in (self.lora_A, self.lora_B):
            matrices[target] = LoraMatrix.of(matrices[source])
            matrices[target].weight = nn.Parameter(matrices[source].weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.base_layer(x)
        if self.disable_adapters:
            return output
        (adapter,) = self.active_adapters
        added: Tensor = self.lora_B[adapter](self.lora_A[adapter](x))
        return torch.add(output, added, alpha=self.scaling[adapter])


class LoraMatrix(nn.Linear):
    """A or B of an adapter: cast to the input's type where it is used."""

    @classmethod
    def of(cls, layer: nn.Linear) -> "LoraMatrix":
        """Return a layer with the weight of `layer`, which has no bias."""
        matrix = cls(layer.in_features, layer.out_features, bias=False, device="meta")
        matrix.weight = layer.weight
        return matrix

    def reset_parameters(self) -> None:
        """Draw no weight, as `of` sets it."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.to(x.dtype))
