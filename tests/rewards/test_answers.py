"""What a plugin's answer may hold, and what is said of one that is no scores."""

import math
from collections import UserString, deque
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from marble_cli.errors import RewardError
from marble_cli.rewards.answers import parse_answer, parse_aspects

HALF = 0.5  # in every floating type


@pytest.mark.parametrize(
    "score",
    [
        HALF,
        np.float16(HALF),
        np.float32(HALF),
        np.longdouble(HALF),
        Fraction(1, 2),
        Decimal("0.5"),
        torch.tensor(HALF, dtype=torch.bfloat16),
        torch.tensor(HALF, dtype=torch.float16),
        torch.tensor(HALF, requires_grad=True),
        torch.tensor([HALF]),
        torch.tensor([[HALF]], dtype=torch.float64),
        torch.tensor([[HALF]], requires_grad=True) * 1,
        np.array(HALF),
        np.array([HALF], np.float32),
        np.ma.masked_array([HALF], [False]),
    ],
    ids=lambda score: f"{type(score).__name__} {getattr(score, 'dtype', '')}",
)
@pytest.mark.parametrize("kind", [list, tuple, deque])
def test_each_element_of_a_list_is_a_float(kind: Any, score: Any) -> None:
    values = parse_answer("mine", kind([score, 1, math.nan]), 3)
    assert values.dtype is torch.float64
    assert not values.requires_grad
    assert values[:2].tolist() == [0.5, 1.0]
    assert torch.isnan(values[2])


@pytest.mark.parametrize(
    "answer",
    [
        torch.tensor([HALF, 2], dtype=torch.bfloat16),
        torch.tensor([HALF, 2], dtype=torch.float16),
        torch.tensor([HALF, 2], requires_grad=True),
        np.array([HALF, 2], np.float16),
        np.array([Fraction(1, 2), 2], dtype=object),
        np.array([HALF, 2], ">f4"),
        np.array([2, 0, HALF])[[2, 0]],
        np.array([2, HALF])[::-1],
    ],
    ids=lambda answer: str(answer.dtype),
)
def test_arrays_of_any_floating_type(answer: Any) -> None:
    values = parse_answer("mine", answer, 2)
    assert values.tolist() == [0.5, 2.0]
    assert values.dtype is torch.float64


def test_an_answer_is_copied() -> None:
    for answer in (torch.ones(2, dtype=torch.float64), np.ones(2)):
        values = parse_answer("mine", answer, 2)
        answer[:] = 7
        assert values.tolist() == [1, 1]


@pytest.mark.parametrize(
    "answer",
    [
        np.ma.masked_array([1.0, 99.0], [False, True]),
        np.ma.masked_array([1, 99], [False, True]),
        np.ma.masked_array([1, 99], [False, True], dtype=np.float16),
        list(np.ma.masked_array([1.0, 99.0], [False, True])),
        [1.0, np.ma.masked],
        [1.0, np.ma.masked_array([99.0], [True])],
    ],
)
def test_masked_elements_are_not_applicable(answer: Any) -> None:
    values = parse_answer("mine", answer, 2)
    assert values[0] == 1.0
    assert torch.isnan(values[1])


def test_bools_and_integers_are_scores() -> None:
    assert parse_answer("mine", [True, False, np.True_, 2**60], 4).tolist() == [1, 0, 1, 2.0**60]
    assert parse_answer("mine", torch.tensor([True, False]), 2).tolist() == [1, 0]


def test_an_exception_becomes_infinity() -> None:
    error = KeyboardInterrupt()
    assert parse_answer("mine", [1.0, ValueError("x"), error], 3).tolist() == [1.0, math.inf, math.inf]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([1.0, None], "a score is None. Return NaN where the reward does not apply"),
        ((None, None), "Return NaN"),
        (np.array([1.0, None]), "Return NaN"),
        (["0.5", 1.0], "a score is the string '0.5'"),
        (["0.5", "0.7"], "a score is the string '0.5'"),
        ([b"1", 1.0], "a score is the string b'1'"),
        (np.array(["0.5", "0.7"]), "scores are <U3"),
        ([np.str_("0.5"), 1.0], "a score is the string"),
        ([UserString("0.5"), "x"], "returned list instead of 2 numbers"),
        ([1j, 1.0], "returned list instead of 2 numbers"),
        ([np.complex64(1), 1.0], "scores are complex64"),
        ([torch.tensor(1j), 1.0], "a score is a tensor of torch.complex64"),
        (torch.tensor([1j, 1]), "a tensor of torch.complex64$"),
        (np.array([1j, 1]), "scores are complex128"),
        ([10**400, 1.0], "returned list instead of 2 numbers: int too large"),
        ([Fraction(10**400), 1.0], "returned list instead of 2 numbers"),
        ([Decimal("sNaN"), 1.0], "returned list instead of 2 numbers"),
        ([torch.ones(2), torch.ones(2)], r"a tensor of torch.float32 of the shape \[2\]"),
        ([np.ones(2), np.ones(2)], r"an array of the shape \[2\]"),
        ([np.datetime64(1, "s"), 1.0], "scores are datetime64"),
        (np.array([1, 2], "timedelta64[s]"), "scores are timedelta64"),
        (torch.eye(2).to_sparse(), "torch.sparse_coo"),
        ({0: 1.0, 1: 2.0}, "returned dict instead of 2 numbers"),
        ((x for x in (1.0, 2.0)), "returned generator instead of 2 numbers: no list, tensor or array"),
        (None, "returned NoneType instead of 2 numbers"),
        ("12", "returned str instead of 2 numbers"),
        ([[1.0], [2.0]], r"scores of shape \[2, 1\] for 2 images"),
        ([[1.0, 2.0], [3.0]], "returned list instead of 2 numbers"),
        (torch.ones(2, 1), r"scores of shape \[2, 1\]"),
        (torch.tensor(1.0), r"scores of shape \[\]"),
        (3.0, r"scores of shape \[\]"),
        ([], r"scores of shape \[0\]"),
    ],
)
def test_an_answer_without_numbers_breaks_the_contract(answer: Any, said: str) -> None:
    with pytest.raises(RewardError, match=f"reward mine .*{said}"):
        parse_answer("mine", answer, 2)


def test_reasons_are_those_of_their_own_images() -> None:
    broke, later = ValueError("broke"), ValueError("later")
    for answer, reasons in (
        ([1.0, broke], {1: broke}),
        ([broke, later], {0: broke, 1: later}),
        ([math.inf, broke], {1: broke}),
        ([math.nan, 1.0], {}),
    ):
        ((_, found),) = parse_aspects("mine", answer, 2, (), ())
        assert found == reasons
    ((_, found),) = parse_aspects("mine", {"style": broke}, 2, ("style",), ["style"])
    assert found == {0: broke, 1: broke}
