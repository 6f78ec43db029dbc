"""Find the score in what a judge says."""

import json
import re
from collections.abc import Callable
from math import inf, isfinite
from typing import Any

from marble_reward_judge.chat import Answer

SHOWN = 120  # characters of an answer in a message


class UnreadableAnswerError(Exception):
    """A judge's answer has no score, or one that is not on its scale."""


class ScoreReader:
    """Reads a number from an answer, by a regular expression or a key of a JSON object."""

    def __init__(
        self, pattern: str | None, json_key: str | None, low: float | None, high: float | None
    ) -> None:
        """
        Args:
            pattern: a regular expression with one group, the number; its last match counts.
            json_key: key of the number in the JSON object that the answer holds.
            low: the scale's lower end, None if it has none.
            high: its upper end.

        Raises:
            ValueError: not exactly one of `pattern` and `json_key` is given, or one of them or the scale is of no use.
        """
        if (pattern is None) == (json_key is None):
            raise ValueError("give one of pattern (a regular expression) and json_key, to find the score by")
        if low is not None and high is not None and not low < high:
            raise ValueError(f"low={low:g} and high={high:g}: expected low < high")
        self.low, self.high = low, high
        self.find: Callable[[str], Any]
        self.find = _by_pattern(pattern) if pattern is not None else _by_key(str(json_key))

    def __call__(self, answer: Answer) -> float:
        """The score as the judge gave it.

        Raises:
            UnreadableAnswerError: there is none, or it is not on the scale.
        """
        end = answer.text[-SHOWN:]
        try:
            score = float(self.find(answer.text))
        except (ValueError, TypeError, LookupError, OverflowError) as error:
            reason = "was cut at max_tokens before it had a score" if answer.cut else "has no score"
            raise UnreadableAnswerError(f"the answer {reason}: {end!r}") from error
        low = -inf if self.low is None else self.low
        high = inf if self.high is None else self.high
        if not (isfinite(score) and low <= score <= high):
            raise UnreadableAnswerError(
                f"the score {score:g} is not on the scale from {low:g} to {high:g}: {end!r}"
            )
        return score


def _by_pattern(pattern: str) -> Callable[[str], Any]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern={pattern!r} is no regular expression: {error}") from error
    if compiled.groups != 1:
        raise ValueError(f"pattern={pattern!r} has {compiled.groups} groups: expected one, around the score")
    return lambda text: compiled.findall(text)[-1]


def _by_key(key: str) -> Callable[[str], Any]:
    def find(text: str) -> Any:
        value = json.loads(text[text.index("{") : text.rindex("}") + 1])[key]
        if isinstance(value, bool):
            raise TypeError("a truth value is no score")
        return value

    return find
