"""Directions of the case, and the rewards' gradients by its reference."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from marble_cli.balance.cache import DirectionCache
from marble_cli.config.enums import Train
from marble_cli.step.direction import Descent, Direction
from marble_cli.step.reward_signal import Signal

DescentMaker = Callable[..., Descent]

only_lora = pytest.mark.parametrize("double_policy", [Train.lora], indirect=True)

STEP = 7
NAMES = ["colorfulness", "compressibility", "third", "fourth", "nowhere"]
INSIDE = "balance.shared_term=inside"
CACHE = DirectionCache(
    torch.tensor([0.4, 0.3, 0.2, 0.1, 0.0], dtype=torch.float64),
    torch.tensor([2.0, 0.5, 0.1, 0.3, 0.0], dtype=torch.float64),
)


def direct(
    descent: Descent, case: Any, cache: DirectionCache = CACHE, signal: Signal | None = None
) -> Direction:
    """Return the direction, its gradient on the CPU."""
    found = descent.direct(STEP, signal or case.signal, case.data, cache, lambda count: None)
    return replace(found, gradient=found.gradient.cpu())


def silent(signal: Signal) -> Signal:
    """The same step, with no score for any image."""
    return replace(
        signal,
        applicable=torch.zeros_like(signal.applicable),
        advantage=torch.zeros_like(signal.advantage),
        optimality=torch.full_like(signal.optimality, 0.5),
    )


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


def distance(got: Tensor, expected: Tensor) -> float:
    assert got.dtype == torch.float64
    return float((got - expected).norm() / expected.norm())


def rewards_gradients(case: Any, reference: Any, *, outside: bool) -> Tensor:
    """[5, P]: the g_k, or h_k = g_k - c_k; the last reward applies nowhere."""
    signal, rows = case.signal, []
    for k in range(4):
        row = reference.gradient(signal.optimality[k], signal.applicable[k])
        rows.append(row - reference.shared(signal.applicable[k]) if outside else row)
    return torch.stack([*rows, torch.zeros_like(rows[0])])
