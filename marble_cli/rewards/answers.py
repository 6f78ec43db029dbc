"""Turn what a plugin answers into numbers."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marble_cli.errors import RewardError

NUMBERS = "biuf"  # numpy's kinds of bool, integers and floats


def parse_answer(name: str, answer: Any, count: int) -> Tensor:
    """Convert a plugin's answer to [count] float64 on the CPU.

    NaN says that the reward does not apply to an image, infinity that it failed.

    In a list, a score may be anything with one value: a number of Python, numpy, `fractions` or `decimal`, or
    a tensor or array with one element, of any dtype and on any device. An exception in its place becomes
    infinity. Masked elements of a numpy.ma array become NaN.

    Raises:
        RewardError: the answer is not `count` numbers or failures.
    """
    try:
        values = _tensor(answer)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise RewardError(
            f"reward {name} returned {type(answer).__name__} instead of {count} numbers: {error}"
        ) from error
    if tuple(values.shape) != (count,):
        raise RewardError(
            f"reward {name} returned scores of shape {list(values.shape)} for {count} images. "
            f"Expected [{count}], one score per image."
        )
    return values


def out_of_range(scores: Tensor) -> Tensor:
    """Tell which scores are infinite, or beyond the range of float32.

    Args:
        scores: of any shape, float64.

    Returns:
        The same shape, bool; false for NaN.
    """
    return scores.abs() > torch.finfo(torch.float32).max


Explained = tuple[Tensor, dict[int, BaseException]]  # scores of `parse_answer`; why images failed, by index


def parse_aspects(
    name: str, answer: Any, count: int, declared: Collection[str], chosen: Sequence[str]
) -> list[Explained]:
    """Convert an answer to the scores of each reward that it holds.

    Args:
        name: of the reward.
        answer: of the plugin.
        count: images of the batch.
        declared: the aspects that the reward declares.
        chosen: the aspects to return; none for a reward with a single score.

    Returns:
        The scores of each chosen aspect, or of the single reward.

    Raises:
        RewardError: the answer is not `count` numbers or failures per aspect, lacks a chosen aspect, or has
            one that is not declared.
    """
    if not declared:
        if isinstance(answer, Mapping):
            raise RewardError(
                f"reward {name} returned a mapping of {_listed(answer)}, and declares no aspects. Expected "
                f"{count} numbers, or an attribute `aspects` with these names."
            )
        return [(parse_answer(name, answer, count), failures(answer))]
    if not isinstance(answer, Mapping):
        raise RewardError(
            f"reward {name} returned {type(answer).__name__} and declares the aspects {_listed(declared)}. "
            f"Expected a mapping from each of them to {count} numbers."
        )
    for aspect in answer:
        if aspect not in declared:
            raise RewardError(
                f"reward {name} returned the aspect {aspect!r}, which it does not declare. "
                f"Expected {_listed(declared)}."
            )
    for aspect in chosen:
        if aspect not in answer:
            raise RewardError(
                f"reward {name} returned no aspect {aspect!r}, only {_listed(answer) or 'an empty mapping'}. "
                f"Expected {_listed(chosen)}."
            )
    return [_parse_aspect(f"{name}.{aspect}", answer[aspect], count) for aspect in chosen]


def _parse_aspect(name: str, answer: Any, count: int) -> Explained:
    """Convert the scores of one aspect; an exception in their place fails it on all images."""
    if isinstance(answer, BaseException):
        return torch.full((count,), torch.inf, dtype=torch.float64), dict.fromkeys(range(count), answer)
    return parse_answer(name, answer, count), failures(answer)


def _listed(names: Collection[Any]) -> str:
    return ", ".join(map(str, names))


def failures(answer: Any) -> dict[int, BaseException]:
    """Return the exceptions that stand in the place of scores in a plugin's answer, by index."""
    return {i: score for i, score in enumerate(_scores(answer)) if isinstance(score, BaseException)}


def _scores(answer: Any) -> list[Any]:
    """Return the elements of a sequence or of a one-dimensional array of objects, else an empty list."""
    if isinstance(answer, np.ndarray) and answer.dtype.kind == "O" and answer.ndim == 1:
        return list(answer)
    plain = isinstance(answer, Sequence) and not isinstance(answer, str | bytes | bytearray)
    return list(answer) if plain else []


def _tensor(answer: Any) -> Tensor:
    """Copy an answer to float64 on the CPU, in its own shape.

    Raises:
        TypeError, ValueError, ArithmeticError, RuntimeError: an element is no number.
    """
    if isinstance(answer, Tensor):
        if answer.is_complex() or answer.layout is not torch.strided:
            kind = answer.dtype if answer.is_complex() else answer.layout
            raise TypeError(f"a tensor of {kind}")
        return answer.detach().to("cpu", torch.float64, copy=True)
    scores = _scores(answer)
    if scores and not any(isinstance(score, list | tuple) for score in scores):
        return torch.tensor([_number(score) for score in scores], dtype=torch.float64)
    return torch.from_numpy(_plain(np.ma.asanyarray(answer)))


def _number(score: Any) -> float:
    """Convert one score of a list: a masked one becomes NaN, an exception infinity.

    Raises:
        TypeError, ValueError, ArithmeticError, RuntimeError: it is no number, or does not fit into a float.
    """
    if isinstance(score, BaseException):
        return math.inf
    if score is None:
        raise TypeError(
            "a score is None. Return NaN where the reward does not apply, and an exception where it failed"
        )
    if isinstance(score, str | bytes | bytearray):
        raise TypeError(f"a score is the string {score[:40]!r}")
    if isinstance(score, Tensor):
        if score.numel() != 1 or score.is_complex():
            raise TypeError(f"a score is a tensor of {score.dtype} of the shape {list(score.shape)}")
        return float(score.detach())
    if isinstance(score, np.ndarray | np.generic):
        if score.size != 1:
            raise TypeError(f"a score is an array of the shape {list(score.shape)}")
        return float(_plain(score).reshape(()))
    return float(score)


def _plain(array: Any) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Copy an array or scalar of numpy to float64, NaN where it is masked."""
    if array.dtype.kind not in NUMBERS:
        raise TypeError(
            "no list, tensor or array"
            if array.dtype.kind == "O" and not array.ndim
            else f"scores are {array.dtype}"
        )
    return np.asarray(np.ma.filled(np.array(array, dtype=np.float64, subok=True), np.nan))
