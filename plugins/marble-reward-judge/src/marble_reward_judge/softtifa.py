"""The `softtifa` reward: Soft-TIFA of GenEval 2, how probable the right answers about a picture are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from marble_cli.rewards.testing.pictures import draw_shape
from marble_reward_judge.completion import Answer
from marble_reward_judge.questions import Questions
from marble_reward_judge.score import UnreadableAnswerError

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
LIKELIEST = 20  # tokens that a server is asked for


@dataclass(repr=False, eq=False)
class SoftTifa(Questions):
    """Geometric mean of the probabilities of the right answers to questions about the picture."""

    requires: ClassVar = {"vqa_list": [[str]]}
    license = "Apache-2.0; the model under its own licence"
    citation = "GenEval 2, arXiv 2512.16853"

    # An answer is one token, with its probabilities.
    temperature: float | None = field(init=False, default=0.0)
    max_tokens: int | None = field(init=False, default=1)

    def __post_init__(self) -> None:
        """Check and keep the settings of the server, which has to return log-probabilities.

        Raises:
            ValueError: an option is invalid, or the variable with the key is not set or holds no key.
        """
        self.extra_body = {"logprobs": True, "top_logprobs": LIKELIEST, **(self.extra_body or {})}
        super().__post_init__()

    def questions(self, row: Mapping[str, Any]) -> list[str]:
        """Return the questions of `vqa_list`, pairs of a question and its answer in one word.

        Raises:
            ValueError: it is empty, or has anything else than pairs.
        """
        pairs = row["vqa_list"]
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise ValueError(f'vqa_list={pairs!r}: expected pairs [["What color is the shape?", "red"], ...]')
        return [f"{question} Answer in one word." for question, _ in pairs]

    def score(self, row: Mapping[str, Any], answers: Sequence[Answer]) -> float:
        """Return the geometric mean of the probabilities of the right answers.

        Raises:
            UnreadableAnswerError: the server sent no log-probabilities.
        """
        pairs = zip(answers, row["vqa_list"], strict=True)
        found = [probability(answer, right) for answer, (_, right) in pairs]
        return math.prod(found) ** (1 / len(found))

    @staticmethod
    def examples() -> list[Any]:
        """Return a pair: a red circle above a blue square, to questions about the circle."""
        metadata = {
            "vqa_list": [["What color is the shape?", "red"], ["What shape is in the image?", "circle"]]
        }
        better, worse = (draw_shape(*drawn) for drawn in (("red", "circle"), ("blue", "square")))
        return [((better, "a red circle", metadata), (worse, "a red circle", metadata))]


def probability(answer: Answer, right: str) -> float:
    """Return the probability of the first tokens that spell the right answer.

    Capital letters and a blank before the word do not matter, and a number may be a numeral.

    Raises:
        UnreadableAnswerError: the server sent no log-probabilities.
    """
    if answer.first is None:
        raise UnreadableAnswerError(
            "the answer has no log-probabilities. Use a server that returns them for top_logprobs="
            f"{LIKELIEST} (vllm serve ... --max-logprobs {LIKELIEST})"
        )
    word = right.strip().lower()
    spellings = {word} | ({str(NUMBERS.index(word) + 1)} if word in NUMBERS else set())
    found = [
        math.exp(log) for token, log in answer.first.items() if token.removeprefix(" ").lower() in spellings
    ]
    return min(1.0, math.fsum(found))
