"""Take the gradients of many mixtures of per-sample losses from one backward pass.

The samples of a batch do not act on one another, so scaling sample i's cotangent by c_i scales all that flows
back from sample i by c_i. One backward pass in which every sample has its own cotangent therefore holds the
gradients of all mixtures sum_i c_ri phi_i: a linear layer with inputs x_i and output cotangents delta_i has
the gradients sum_i c_ri delta_i^T x_i. A further mixture costs only that last product, over the adapter's
small matrices.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from marble_cli.errors import ConfigError


class PerSampleGradients:
    """Add the gradients of R mixtures to `rows` [R, P] while backward passes run.

    Args:
        layers: linear layers without bias, whose inputs and outputs have the samples as their first
            dimension.
        rows: [R, P] to add to; P are the layers' weights one after another.
    """

    def __init__(self, layers: Sequence[nn.Linear], rows: Tensor) -> None:
        self.layers = layers
        self.rows = rows.split([layer.weight.numel() for layer in layers], dim=1)
        self.coefficients: Tensor | None = None  # [R, B] during `mix` only

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the layers; forward passes, their backward passes and `mix` belong inside."""
        try:
            for layer, row in zip(self.layers, self.rows, strict=True):
                layer.forward = partial(self._forward, layer, row)  # type: ignore[method-assign]
            # Compiled blocks would call the layers' own `forward`.
            with torch.compiler.set_stance("force_eager"):
                yield
        finally:
            for layer in self.layers:
                layer.__dict__.pop("forward", None)

    def mix(self, output: Tensor, cotangent: Tensor, coefficients: Tensor, *, retain_graph: bool) -> None:
        """Add the gradients of sum_i coefficients_ri cotangent_i . output_i to `rows`, by one backward pass.

        Args:
            output: [B, ...] of a forward pass that was watched.
            cotangent: like `output`.
            coefficients: [R, B].
            retain_graph: keep the graph for another pass.
        """
        self.coefficients = coefficients.to(self.rows[0])
        try:
            output.backward(cotangent, retain_graph=retain_graph)
        finally:
            self.coefficients = None

    def _forward(self, layer: nn.Linear, row: Tensor, x: Tensor) -> Tensor:
        output: Tensor = _Linear.apply(x, layer.weight.to(x.dtype), self, row)  # type: ignore[no-untyped-call]
        return output

    def add(self, row: Tensor, x: Tensor, delta: Tensor) -> None:
        """Add one layer's gradients to its `row` [R, in x out].

        Args:
            row: to add to.
            x: inputs, samples first.
            delta: output cotangents, samples first.

        Raises:
            ConfigError: the first dimension of `x` is not that of the samples.
        """
        assert self.coefficients is not None
        samples = self.coefficients.shape[1]
        if len(x) != samples:
            raise ConfigError(
                f"model.lora.target_modules names a layer whose input has {len(x)} rows for {samples} "
                "samples. Expected layers whose inputs have the samples as their first dimension, such as "
                "the attention projections."
            )
        x, delta = x.reshape(samples, -1, x.shape[-1]), delta.reshape(samples, -1, delta.shape[-1])
        row.addmm_(self.coefficients, torch.bmm(delta.mT, x).flatten(1).to(row))


class _Linear(torch.autograd.Function):
    """Compute y = x W^T; the backward pass adds to the rows during `mix`, else it returns W's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, per_sample: PerSampleGradients, row: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.per_sample, ctx.row = per_sample, row
        return functional.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        back = delta @ weight if ctx.needs_input_grad[0] else None
        if ctx.per_sample.coefficients is None:
            return back, delta.flatten(0, -2).mT @ x.flatten(0, -2), None, None
        ctx.per_sample.add(ctx.row, x, delta)
        return back, None, None, None
