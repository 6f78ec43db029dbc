"""The `softtifa` reward: Soft-TIFA of GenEval 2, how probable the right answers about a picture are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

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

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> list[float | Exception]:
        """Score a batch.

        Args:
            images: uint8 [B, 3, H, W]; sent at this size.
            prompts: B prompts, which are not used.
            metadata: B mappings with `vqa_list`, pairs of a question and its answer in one word.

        Returns:
            B scores in [0, 1]; an error takes the place of a score that could not be had.

        Raises:
            ServerError: the server refuses the key, or knows no such model or address.
        """
        pairs = [row["vqa_list"] for row in metadata]
        questions = [[f"{question} Answer in one word." for question, _ in own] for own in pairs]
        scores: list[float | Exception] = []
        for own, answers in zip(pairs, self.ask(images, questions), strict=True):
            if isinstance(answers, Exception):
                scores.append(answers)
                continue
            try:
                found = [probability(answer, right) for answer, (_, right) in zip(answers, own, strict=True)]
                scores.append(math.prod(found) ** (1 / len(found)))
            except UnreadableAnswerError as error:
                scores.append(error)
        return scores

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
    spellings = {word, word.capitalize()} | ({str(NUMBERS.index(word) + 1)} if word in NUMBERS else set())
    found = [math.exp(log) for token, log in answer.first.items() if token.removeprefix(" ") in spellings]
    return min(1.0, math.fsum(found))
