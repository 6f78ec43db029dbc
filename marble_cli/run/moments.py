"""Convert an optimizer's moments to named tensors and back: AdamW's in float32, or 8-bit AdamW's in blocks.

bitsandbytes keeps a moment as one byte per value, an index into a fixed table, and the largest magnitude of
every 256 values. Small parameters have float32 moments under the same names.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from marble_cli.distributed.shards import as_dtensor, local_shard

BLOCK = 256  # values of a moment that share a scale
LEAST_8BIT = 4096  # parameters with fewer values have float32 moments
SIGNED = ("exp_avg", "state1")  # moments that may be below 0
Form = tuple[tuple[int, ...], torch.dtype]  # shape and type of a moment
STEP: Form = ((), torch.float32)


def hold_moments(optimizer: Optimizer, trained: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the moments as this rank holds them, by `PARAMETER|moment`; none before the first step."""
    return {
        f"{name}|{moment}": torch.as_tensor(optimizer.state[parameter][moment], dtype=kind)
        for name, parameter in trained.items()
        if parameter in optimizer.state
        for moment, (_, kind) in _forms(optimizer, parameter).items()
    }


def expected_moments(optimizer: Optimizer, trained: Mapping[str, nn.Parameter]) -> dict[str, Form]:
    """Return the shape and type of every moment by `PARAMETER|moment`."""
    return {
        f"{name}|{moment}": form
        for name, parameter in trained.items()
        for moment, form in _forms(optimizer, parameter).items()
    }


def load_moments(
    optimizer: Optimizer, trained: Mapping[str, nn.Parameter], moments: Mapping[str, Tensor]
) -> None:
    """Replace the optimizer's state by `moments`, which `expected_moments` describes, or which are empty."""
    optimizer.state.clear()
    for place, (name, parameter) in enumerate(trained.items() if moments else ()):
        found = {moment: moments[f"{name}|{moment}"] for moment in _forms(optimizer, parameter)}
        if isinstance(optimizer, AdamW):
            optimizer.state[parameter] = {
                moment: _as_adamw(value, parameter) for moment, value in found.items()
            }
        else:
            _load_8bit(optimizer, place, parameter, found)


def _forms(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Form]:
    """Return the shape and type of each moment of a parameter."""
    whole = tuple(parameter.shape), torch.float32
    if isinstance(optimizer, AdamW):
        return {"step": STEP, "exp_avg": whole, "exp_avg_sq": whole}
    if parameter.numel() < LEAST_8BIT:
        return {"step": STEP, "state1": whole, "state2": whole}
    values, scales = (whole[0], torch.uint8), ((-(-parameter.numel() // BLOCK),), torch.float32)
    return {"step": STEP, "state1": values, "state2": values, "absmax1": scales, "absmax2": scales}


def _as_adamw(moment: Tensor, parameter: Tensor) -> Tensor:
    """Return a moment as AdamW keeps it: sharded and placed as `parameter`, but the step count on the CPU."""
    if not moment.dim():
        return moment
    return as_dtensor(local_shard(moment, parameter).to(parameter.device, copy=True), parameter)


@torch.no_grad()
def _load_8bit(optimizer: Optimizer, place: int, parameter: nn.Parameter, found: dict[str, Tensor]) -> None:
    """Let bitsandbytes make the state of a parameter, with its tables, and fill in the moments."""
    optimizer.init_state(optimizer.param_groups[0], parameter, 0, place)  # type: ignore[attr-defined]
    state = optimizer.state[parameter]
    state["step"] = int(found.pop("step"))
    for moment, value in found.items():
        state[moment].copy_(value)
