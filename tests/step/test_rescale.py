"""Cotangents in float16's range."""

import math

import pytest
import torch

from marble_cli.distributed.layout import Replicated
from marble_cli.distributed.ranks import Ranks
from marble_cli.step.rescale import LARGEST, rescale_cotangent

HALF = torch.float16


@pytest.mark.parametrize("largest", [1e-30, 3e-9, 0.0624, 0.0625, 0.07, 1.0, 5e4, 1e30])
def test_the_largest_cotangent_comes_within_a_factor_of_two_below_twice_the_limit(largest: float) -> None:
    cotangent = torch.tensor([[0.3, -1.0, 0.0]]) * largest
    scaled, factor = rescale_cotangent(cotangent, HALF, Replicated(Ranks.alone()))
    assert math.frexp(factor.item())[0] == 0.5, "a power of two"
    assert LARGEST <= scaled.abs().max() < 2 * LARGEST
    assert torch.equal(scaled * factor, cotangent)


@pytest.mark.parametrize("value", [0.0, math.inf, -math.inf, math.nan])
def test_what_has_no_scale_stays_as_it_is(value: float) -> None:
    cotangent = torch.tensor([value, 0.0])
    scaled, factor = rescale_cotangent(cotangent, HALF, Replicated(Ranks.alone()))
    torch.testing.assert_close(scaled, cotangent, rtol=0, atol=0, equal_nan=True)
    assert factor.item() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types_have_the_range_of_float32(dtype: torch.dtype) -> None:
    cotangent = torch.tensor([1e-30, 1e-9])
    scaled, factor = rescale_cotangent(cotangent, dtype, Replicated(Ranks.alone()))
    assert torch.equal(scaled, cotangent)
    assert factor.item() == 1


def test_sharded_ranks_take_the_factor_of_the_largest_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Replicated(Ranks.alone())
    monkeypatch.setattr(layout, "sharded", True, raising=False)
    monkeypatch.setattr(layout.ranks, "all_reduce_max", lambda largest: largest * 8)
    factors = []
    for sharded in (True, False):
        monkeypatch.setattr(layout, "sharded", sharded, raising=False)
        factors.append(rescale_cotangent(torch.tensor([1e-6, -3e-7]), HALF, layout)[1].item())
    assert factors[0] == 8 * factors[1]
