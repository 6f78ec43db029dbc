"""Take per-sample gradients through compiled blocks.

`PerSampleGradients` adds to its rows inside the backward pass, which a compiled graph does not allow. Here
each layer gets one more input: an unused tensor of a row per sample, whose gradient is that of the layer's
weight for each sample. The compiled backward pass returns these gradients, and hooks outside of it mix them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from marble_cli.step.per_sample import PerSampleGradients, check_samples

# With torch 2.11 the process ended on an H100 while the first backward pass was compiled; 2.12 was not tried.
SUPPORTED = torch.__version__ >= "2.13"


class CompiledPerSampleGradients(PerSampleGradients):
    """Add the gradients of R mixtures to `rows` [R, P] while compiled backward passes run.

    Arguments and methods are those of `PerSampleGradients`; `expect` must precede each forward pass.
    """

    def __init__(self, layers: Sequence[nn.Linear], rows: Tensor) -> None:
        super().__init__(layers, rows)
        self.unused: dict[int, list[Tensor]] = {}  # by number of samples: of each layer [samples, out, in]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the layers; forward passes, their backward passes and `mix` belong inside."""
        try:
            for layer in self.layers:
                # Compiled code is chosen by the types of modules, so blocks get code of their own for this.
                layer.__class__ = _watched(type(layer))  # type: ignore[arg-type]
            # The default frees the graph's buffers in its first backward pass.
            with torch._functorch.config.patch(donated_buffer=False):
                yield
        finally:
            for layer in self.layers:
                if isinstance(layer, WatchedLinear):
                    layer.__class__ = layer.unwatched  # type: ignore[assignment]
                    layer.__dict__.pop("unused", None)

    def expect(self, samples: int) -> None:
        """Prepare the layers for a forward pass of so many samples."""
        if samples not in self.unused:
            self.unused[samples] = [
                self._make_unused(layer, row, samples)
                for layer, row in zip(self.layers, self.rows, strict=True)
            ]
        for layer, unused in zip(self.layers, self.unused[samples], strict=True):
            layer.__dict__["unused"] = unused

    def _make_unused(self, layer: nn.Linear, row: Tensor, samples: int) -> Tensor:
        unused = row.new_zeros(()).expand(samples, *layer.weight.shape).requires_grad_()
        torch._dynamo.maybe_mark_dynamic(unused, 0)
        unused.register_post_accumulate_grad_hook(partial(self._mix, row))
        return unused

    def _mix(self, row: Tensor, unused: Tensor) -> None:
        """Add a layer's gradients per sample to its `row` [R, in x out], and free them."""
        assert unused.grad is not None
        if self.coefficients is not None:
            row.addmm_(self.coefficients, unused.grad.flatten(1))
        unused.grad = None

    def _backward(self, output: Tensor, cotangent: Tensor, retain_graph: bool) -> None:
        unused = self.unused[len(output)]
        torch.autograd.backward(output, cotangent, retain_graph=retain_graph, inputs=unused)


class WatchedLinear(nn.Linear):
    """A layer whose outputs lead to the gradients of its `unused` input as well."""

    unused: Tensor
    unwatched: type[nn.Linear]

    def forward(self, x: Tensor) -> Tensor:
        check_samples(x, len(self.unused))
        output: Tensor = _WithGradientPerSample.apply(super().forward(x), x, self.unused)  # type: ignore[no-untyped-call]
        return output


@cache
def _watched(kind: type[nn.Linear]) -> type[nn.Linear]:
    """Return the class of layers of this class that are watched."""
    return type(f"Watched{kind.__name__}", (WatchedLinear, kind), {"unwatched": kind})


class _WithGradientPerSample(torch.autograd.Function):
    """Return a layer's `output`; the backward pass returns the gradients of its weight per sample, too."""

    @staticmethod
    def forward(output: Tensor, x: Tensor, unused: Tensor) -> Tensor:
        return output.view_as(output)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _, x, unused = inputs
        ctx.save_for_backward(x)
        ctx.dtype = unused.dtype

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, None, Tensor]:
        (x,) = ctx.saved_tensors
        tokens, cotangents = x.reshape(len(x), -1, x.shape[-1]), delta.reshape(len(x), -1, delta.shape[-1])
        return delta, None, torch.bmm(cotangents.mT, tokens.to(delta.dtype)).to(ctx.dtype)
