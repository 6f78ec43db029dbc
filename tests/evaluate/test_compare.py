"""Compare evaluations image by image: what both have counts."""

import numpy as np
import pytest
import torch
from torch import Tensor

from marble_cli.data.prompts import Prompt
from marble_cli.evaluate.compare import compare
from marble_cli.evaluate.score import Evaluation
from marble_cli.evaluate.statistics import paired_interval
from marble_cli.rewards.scorer import Scores


def evaluation(values: Tensor) -> Evaluation:
    applicable = ~values.isnan()
    names = [f"r{k}" for k in range(len(values))]
    prompts = [Prompt(str(i)) for i in range(values.shape[1])]
    images = torch.zeros(values.shape[1], 3, 2, 2, dtype=torch.uint8)
    return Evaluation(prompts, images, Scores(names, values, applicable, torch.zeros_like(applicable)))


NAN = torch.nan
ONE = evaluation(torch.tensor([[1.0, 2.0, 3.0, 6.0], [5.0, NAN, 7.0, NAN], [NAN] * 4]).double())
OTHER = evaluation(torch.tensor([[0.0, 2.0, 2.0, 4.0], [4.0, 4.0, NAN, NAN], [1.0] * 4]).double())


def test_one_policy_is_summed_up_alone() -> None:
    results = compare(ONE, None)
    assert [(r.name, r.n, r.mean, r.difference, r.low) for r in results] == [
        ("r0", 4, 3.0, None, None),
        ("r1", 2, 6.0, None, None),
        ("r2", 0, None, None, None),
    ]
    assert ONE.summary() == {"r0": (3.0, pytest.approx(3.5**0.5), 4), "r1": (6.0, 1.0, 2)}


def test_two_policies_are_compared_on_the_images_that_both_have() -> None:
    first, second, third = compare(ONE, OTHER)
    assert (third.n, third.mean, third.difference) == (0, None, None)
    assert (first.n, first.mean, first.reference, first.difference) == (4, 3.0, 2.0, 1.0)
    assert (first.low, first.high) == paired_interval(np.array([1.0, 0.0, 1.0, 2.0]))
    assert (second.name, second.n, second.mean, second.reference, second.difference) == (
        "r1",
        1,
        5.0,
        4.0,
        1.0,
    )
