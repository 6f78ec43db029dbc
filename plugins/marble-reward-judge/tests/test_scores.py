"""Scores: found by pattern or key, checked against the scale, and mapped to [0, 1]."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from marble_reward_judge.chat import Answer
from marble_reward_judge.judge import Judge
from marble_reward_judge.score import ScoreReader, UnreadableAnswerError
from marble_reward_judge.unifiedreward import UnifiedReward
from torch import Tensor

if TYPE_CHECKING:
    from conftest import Server

PATTERN = r"Score: (-?\d+(?:\.\d+)?)"


def pictures(count: int) -> Tensor:
    return torch.zeros(count, 3, 8, 8, dtype=torch.uint8)


def failures(scores: list[Any]) -> list[str | None]:
    """Return the message of each failure, None for a score."""
    return [str(score) if isinstance(score, Exception) else None for score in scores]


@pytest.mark.parametrize(
    ("text", "score"),
    [("Score: 3", 3), ("Score: 1 at first, but then\nScore: 4.5/5", 4.5), ("**Score: 2**", 2)],
)
def test_reads_a_score_by_pattern(text: str, score: float) -> None:
    assert ScoreReader(PATTERN, None, 1, 5)(Answer(text, False)) == score


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"score": 3, "why": "{}"}', 3),
        ('Here:\n```json\n{"why": "x", "score": 4.5}\n```', 4.5),
        ('{"score": "2"}', 2),
    ],
)
def test_reads_a_score_by_key(text: str, score: float) -> None:
    assert ScoreReader(None, "score", 1, 5)(Answer(text, False)) == score


@pytest.mark.parametrize(
    ("reader", "answer", "message"),
    [
        ((PATTERN, None), Answer("nothing", False), "the answer has no score: 'nothing'"),
        ((PATTERN, None), Answer("Well, let me", True), r"was cut \(length\) before it had a score"),
        ((PATTERN, None), Answer("Score: 7", False), "the score 7 is not on the scale from 1 to 5"),
        ((PATTERN, None), Answer("Score: -3", False), "the score -3 is not on the scale"),
        ((None, "score"), Answer("nothing", False), "has no score"),
        ((None, "score"), Answer('{"score": 3', True), "was cut"),
        ((None, "score"), Answer('{"mark": 3}', False), "has no score"),
        ((None, "score"), Answer('{"score": true}', False), "has no score"),
        ((None, "score"), Answer('{"score": null}', False), "has no score"),
        ((None, "score"), Answer('{"score": NaN}', False), "is not on the scale"),
        ((None, "score"), Answer(f'{{"score": 1{"0" * 400}}}', False), "has no score"),
    ],
)
def test_an_answer_without_a_score_on_the_scale_is_an_error(
    reader: tuple[Any, Any], answer: Answer, message: str
) -> None:
    with pytest.raises(UnreadableAnswerError, match=message):
        ScoreReader(*reader, 1, 5)(answer)


def test_without_a_scale_a_score_must_be_finite() -> None:
    with pytest.raises(UnreadableAnswerError, match="the score inf is not on the scale from -inf to inf"):
        ScoreReader(None, "score", None, None)(Answer('{"score": Infinity}', False))


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Final Score: 1", 0.2),
        ("Final Score: 5", 1.0),
        ("**Final Score:** 3.65", 0.73),
        ("Final Score: 4/5", 0.8),
    ],
)
def test_unifiedreward_divides_by_five(server: "Server", text: str, score: float) -> None:
    server.reply = lambda body, number: server.says(f"cube (object): 1\n{text}")
    assert UnifiedReward(server.url)(pictures(1), ["p"]) == pytest.approx([score])


def test_unifiedreward_refuses_a_score_outside_its_scale(server: "Server") -> None:
    server.reply = lambda body, number: server.says("Final Score: 10")  # the published pattern reads 1
    (message,) = failures(UnifiedReward(server.url)(pictures(1), ["p"]))
    assert message == "the score 10 is not on the scale from 1 to 5: 'Final Score: 10'"


def test_scores_are_mapped_to_one_unless_raw(server: "Server", judge: Callable[..., Judge]) -> None:
    server.reply = lambda body, number: server.says("4")
    assert judge(low=2, high=10)(pictures(1), ["p"]) == [0.25]
    assert judge(low=2, high=10, raw=True)(pictures(1), ["p"]) == [4.0]
    assert judge(low=None, high=None, raw=True)(pictures(1), ["p"]) == [4.0]
    assert judge(low=0, high=math.inf, raw=True)(pictures(1), ["p"]) == [4.0]
    assert judge(low=2, high=10, raw=True).range == (2, 10)
    assert judge().range == (0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "Rate it"}, "expected {prompt} where the prompt belongs"),
        ({"json_key": "score"}, "give one of pattern"),
        ({"pattern": None}, "give one of pattern"),
        ({"pattern": "("}, "is no regular expression"),
        ({"pattern": r"\d"}, "has 0 groups: expected one"),
        ({"low": None}, "give low and high, the judge's scale, or raw=true"),
        ({"low": 5, "high": 5}, "expected low < high"),
        ({"high": math.inf}, "give low and high"),
        ({"low": -math.inf}, "give low and high"),
        ({"low": "0"}, "low='0': expected a number"),
        ({"raw": "no"}, "raw='no': expected true or false"),
        ({"concurrency": "16"}, "concurrency='16': expected a whole number"),
        ({"concurrency": True}, "concurrency=True: expected a whole number"),
        ({"attempts": 2.5}, "attempts=2.5: expected a whole number"),
        ({"extra_body": "x"}, "extra_body='x': expected a mapping"),
        ({"concurrency": 0}, "concurrency=0: expected a whole number from 1 on"),
        ({"attempts": 0}, "attempts=0"),
    ],
)
def test_invalid_options_are_refused(
    judge: Callable[..., Judge], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        judge(**options)
