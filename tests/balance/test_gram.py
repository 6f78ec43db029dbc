"""Gram matrices and cosines."""

import pytest
import torch

from marble_cli.balance import cosines, gram, normalise
from marble_cli.balance import gram as gram_function
from marble_cli.balance.gram import CHUNK


def test_inner_products_are_exact_where_float32_is_not() -> None:
    """Large terms that cancel and a small one in another chunk, which float32 would lose."""
    gradients = torch.zeros(2, CHUNK + 7)
    gradients[:, :2] = torch.tensor([[1e4, 1e4], [1e4, -1e4]])
    gradients[:, -1] = 1e-2
    assert gram(gradients)[0, 1].item() == pytest.approx(1e-4, rel=1e-6)
    assert gram(gradients).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_precision_is_summed_in_float64(dtype: torch.dtype) -> None:
    gradients = torch.randn(4, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = gradients.double()
    result = gram(gradients)
    torch.testing.assert_close(result, exact @ exact.T, rtol=1e-13, atol=1e-13)
    assert torch.equal(result, result.T)


def test_shards_add_up() -> None:
    gradients = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gram(gradients[:, :37]) + gram(gradients[:, 37:]), gram(gradients))


def test_normalising_leaves_unit_vectors() -> None:
    gradients = torch.randn(4, 9, dtype=torch.float64) * torch.tensor([[1e-6], [1.0], [1e3], [1e6]])
    unit, norms = normalise(gram_function(gradients))
    torch.testing.assert_close(norms, gradients.norm(dim=1))
    assert (unit.diagonal() == 1.0).all()
    assert unit.abs().max() <= 1.0 + 1e-12


def test_cosines_are_those_of_the_vectors() -> None:
    gradients = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    weights = torch.tensor([0.1, -2.0, 1e-3, 0.7], dtype=torch.float64)
    expected = torch.cosine_similarity((weights @ gradients)[None], gradients)
    torch.testing.assert_close(cosines(gram(gradients), weights), expected)
    with_direction = torch.cat([gradients, (weights @ gradients)[None]])
    other = cosines(gram(with_direction), torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]))
    torch.testing.assert_close(other[:4], expected)


def test_cosines_of_nothing() -> None:
    gradients = torch.tensor([[1.0, 2.0], [torch.nan, 0.0], [0.0, 0.0]])
    result = cosines(gram(gradients), torch.tensor([1.0, 1.0, 1.0]))
    assert result[0] == 1.0
    assert result[1:].isnan().all()
    assert cosines(gram(gradients), torch.zeros(3))[0] == 0.0
