"""Read a score from the probabilities of an answer's first token."""

import math
from collections.abc import Mapping

from marble_reward_judge.completion import Answer
from marble_reward_judge.score import UnreadableAnswerError
from marble_reward_judge.softtifa import LIKELIEST, NUMBERS, probability

LEAST = 0.5  # least probability that the answer is one of those that count
# Keys of a request for the probabilities of the first token, which is the whole answer.
REQUEST = {"logprobs": True, "top_logprobs": LIKELIEST}


class ExpectedValue:
    """Reads the expected value of an answer over the probabilities of the answers that count.

    It is sum_a p_a v_a / sum_a p_a, where p_a is the probability that the first token is the answer a, whose
    value is v_a. Capital letters and a blank before it do not matter; 1 to 10 may be words or numerals.
    """

    def __init__(self, answers: Mapping[str, float], allow_text: bool) -> None:
        """Check and keep the answers.

        Args:
            answers: values of the answers that count, e.g. {"yes": 1, "no": 0}.
            allow_text: take the value of the answer's text if the server sends no probabilities.

        Raises:
            ValueError: there are fewer than two answers, a value is not finite, all are equal, or a first
                token cannot tell two answers apart.
        """
        self.values = {str(answer).strip().lower(): value for answer, value in answers.items()}
        values = self.values.values()
        if len(values) < 2 or len(values) < len(answers):
            raise ValueError(f"answers={dict(answers)}: expected at least two different answers")
        if not all(isinstance(v, int | float) and math.isfinite(v) for v in values) or len(set(values)) == 1:
            raise ValueError(f"answers={dict(answers)}: expected finite numbers, not all of them equal")
        for one in self.values:
            for other in self.values:
                if one != other and other.startswith(one):
                    raise ValueError(
                        f"answers: {other!r} begins with {one!r}, so a first token may not tell them apart. "
                        "Expected words or digits that begin differently, such as 1 to 9"
                    )
        self.allow_text = allow_text

    def __call__(self, answer: Answer) -> float:
        """Return the expected value.

        Raises:
            UnreadableAnswerError: the server sent no probabilities, or the answer is probably another one.
        """
        if answer.first is None and self.allow_text:
            text = answer.text.strip().strip(".!\"'").lower()
            if text in self.values:
                return self.values[text]
        shares = {text: probability(answer, _word(text)) for text in self.values}
        total = math.fsum(shares.values())
        if total < LEAST:
            raise UnreadableAnswerError(
                f"the answer {answer.text[:40]!r} is one of {', '.join(self.values)} with a probability of "
                f"{total:.3g} only. Let the template ask for one of these words alone"
            )
        return math.fsum(share * self.values[text] for text, share in shares.items()) / total


def _word(text: str) -> str:
    """Return the word for a numeral from 1 to 10, any other text as it is."""
    numerals = [str(number) for number in range(1, len(NUMBERS) + 1)]
    return NUMBERS[numerals.index(text)] if text in numerals else text
