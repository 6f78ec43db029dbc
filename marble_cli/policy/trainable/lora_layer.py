"""A linear layer with adapters that computes in its input's type, while A and B are kept in float32."""

import copy
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
            matrices[adapter_name].__class__ = LoraMatrix

    def copy_adapter(self, source: str, target: str) -> None:
        """Add an adapter with the settings and weights of another; `update_layer` would draw new weights."""
        settings = (self.r, self.lora_alpha, self.scaling, self.lora_bias, self.use_rslora, self.use_dora)
        for parts in (*settings, self.lora_dropout, self.lora_A, self.lora_B):
            parts[target] = copy.deepcopy(parts[source])

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.base_layer(x)
        if self.disable_adapters:
            return output
        (adapter,) = self.active_adapters
        added: Tensor = self.lora_B[adapter](self.lora_A[adapter](x))
        return torch.add(output, added, alpha=self.scaling[adapter])


class LoraMatrix(nn.Linear):
    """A or B of an adapter: cast to the input's type where it is used."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.to(x.dtype))
