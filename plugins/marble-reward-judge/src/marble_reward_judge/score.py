"""Find the score in a judge's answer."""

import json
import re
from collections.abc import Callable, Iterator
from math import inf, isfinite
from typing import Any

from marble_reward_judge.completion import Answer

SHOWN = 120  # characters of an answer that a message quotes
NUMBER = r"(?:\d+\.?\d*|\.\d+)"
SCORE = re.compile(
    rf"(?P<score>[-+]?{NUMBER}(?:[eE][-+]?\d+)?)\s*"
    rf"(?:\(?(?:/|out of)\s*(?P<end>{NUMBER})\)?|(?P<percent>%))?",
    re.ASCII,
)
# A pattern's group for a number in prose, with all that changes it: 4/10, "4 out of 10", 4%, "2,5", 3-4, 1e1.
# What is no score on the scale is then refused, not read as the digits that it begins with.
WHOLE = (
    r"\d(?:[\w.,:/%~+–—-]*[\w/%~+–—-])?"
    r"(?:[ \t*]*(?:%|(?:[-–—]|of|to)[ \t*]*\d+(?:\.\d+)?|\(?(?:/|out of)[ \t*]*(?:\d+(?:\.\d+)?)?))?"
)
NAMES = (
    r"(?!(?:begin|start|end)_)(?:[\w.-]+[:_])?"
    r"(?:think(?:ing)?|thoughts?|reasoning|analysis|scratchpad|reflection)"
)
# Marks that models put around their thinking: opening and closing.
THINKING = (
    (rf"<\|?{NAMES}(?:\s[^<>]*)?(?<!/)\|?>", rf"<\|?/{NAMES}\s*\|?>"),
    (r"<\|start_thinking\|>", r"<\|end_thinking\|>"),
    (r"<\|channel\|?>\s*(?!final)\w+", r"(?:<channel\|>|<\|channel\|>\s*final\s*<\|message\|>)"),
    (r"\[think\]", r"\[/think\]"),
    ("◁think▷", "◁/think▷"),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
)
DECODER = json.JSONDecoder(strict=False)  # models write line ends into strings
OBJECT_START = re.compile(r'\{\s*"[^"\\]*"\s*:')
BRACES = re.compile(r'"(?:[^"\\]|\\.)*"|[{}]', re.DOTALL)  # or strings, whose braces do not count


class UnreadableAnswerError(Exception):
    """A judge's answer has no score, or one outside its scale."""


class ScoreReader:
    """Reads a number from an answer by a regular expression, or by the key of a JSON object."""

    def __init__(
        self, pattern: str | None, json_key: str | None, low: float | None, high: float | None
    ) -> None:
        """Check and keep the settings.

        Args:
            pattern: a regular expression with one group, the number; its last match counts.
            json_key: key of the number in a JSON object in the answer.
            low: lower end of the scale, None if there is none.
            high: upper end of the scale, None if there is none.

        Raises:
            ValueError: not exactly one of `pattern` and `json_key` is given, or an argument is invalid.
        """
        if (pattern is None) == (json_key is None):
            raise ValueError("give one of pattern (a regular expression) and json_key, to find the score by")
        if low is not None and high is not None and not low < high:
            raise ValueError(f"low={low:g} and high={high:g}: expected low < high")
        self.low = None if low is None else float(low)
        self.high = None if high is None else float(high)
        self.find: Callable[[str], Any]
        self.find = _by_pattern(pattern) if pattern is not None else _by_key(str(json_key))

    def __call__(self, answer: Answer) -> float:
        """Return the score as the judge gave it.

        Raises:
            UnreadableAnswerError: there is no score, it is not on the scale, or the answer is incomplete.
        """
        end = answer.text[-SHOWN:]
        if answer.cut:
            # The last score counts, and a complete answer might have had a later one.
            raise UnreadableAnswerError(
                f"the answer was cut ({answer.reason}) before it had a score that counts: {end!r}. "
                "Raise max_tokens if it was too long"
            )
        try:
            score = self._number(self.find(conclusion(answer.text)))
        except (ValueError, TypeError, LookupError, OverflowError) as error:
            raise UnreadableAnswerError(f"the answer has no score: {end!r}") from error
        low = -inf if self.low is None else self.low
        high = inf if self.high is None else self.high
        if not (isfinite(score) and low <= score <= high):
            raise UnreadableAnswerError(
                f"the score {score:g} is not on the scale from {low:g} to {high:g}: {end!r}"
            )
        return score

    def _number(self, value: Any) -> float:
        """Convert a score; text may be "4", or "4/5", "4 out of 5" and "80%" if the scale ends at 5 or 100.

        Raises:
            TypeError: the value is no number.
            ValueError: the value is on another scale.
        """
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, str) or not (parts := SCORE.fullmatch(value.strip())):
            raise TypeError(f"{value!r} is no number")
        end = 100.0 if parts["percent"] else float(parts["end"]) if parts["end"] else self.high
        if end != self.high:
            raise ValueError(f"{value!r} is on a scale that ends at {end:g}")
        return float(parts["score"])


def conclusion(text: str) -> str:
    """Return the text outside and after the thinking.

    If a model's template opens the thinking, the answer has only the closing mark.

    Raises:
        ValueError: the thinking does not end.
    """
    for opening, closing in THINKING:
        text = re.sub(f"{opening}.*?{closing}", "", text, flags=re.DOTALL | re.IGNORECASE)
        text = re.split(closing, text, flags=re.IGNORECASE)[-1]
        if re.search(opening, text, re.IGNORECASE):
            raise ValueError("the thinking does not end")
    return text


def _by_pattern(pattern: str) -> Callable[[str], Any]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern={pattern!r} is no regular expression: {error}") from error
    if compiled.groups != 1:
        raise ValueError(f"pattern={pattern!r} has {compiled.groups} groups: expected one, around the score")
    return lambda text: compiled.findall(text)[-1]


def _by_key(key: str) -> Callable[[str], Any]:
    return lambda text: [found[key] for found in objects(text) if key in found][-1]


def objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects in a text, without those inside others.

    Braces that begin no object are prose. Text that begins as an object but is no JSON is skipped with all
    its content.
    """
    place = 0
    while (place := text.find("{", place)) >= 0:
        try:
            found, place = DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            place = _end(text, place) if OBJECT_START.match(text, place) else place + 1
        else:
            yield found


def _end(text: str, start: int) -> int:
    """Return the place after the brace that closes the one at `start`, or the end; strings are skipped."""
    depth = 0
    for part in BRACES.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(part[0], 0)
        if depth == 0:
            return part.end()
    return len(text)
