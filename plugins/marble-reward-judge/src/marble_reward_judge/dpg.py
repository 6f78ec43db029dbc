"""The `dpg` reward: DPG-Bench's share of a dense prompt that a picture shows."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from marble_cli.rewards.testing.pictures import draw_shape
from marble_reward_judge.completion import Answer
from marble_reward_judge.questions import Questions
from marble_reward_judge.score import SHOWN, UnreadableAnswerError, conclusion

WORD = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


class DpgBench(Questions):
    """Share of the prompt's questions that are answered by yes; a question depends on others."""

    requires: ClassVar = {
        "question_natural_language": [str],
        "proposition_id": [str],
        "dependency": [str],
    }
    license = "Apache-2.0; the model under its own licence"
    citation = "DPG-Bench: ELLA, arXiv 2403.05135"

    def questions(self, row: Mapping[str, Any]) -> list[str]:
        """Return the questions of the columns of DPG-Bench's table, which are lists, one entry per question.

        Raises:
            ValueError: they are empty, of different lengths, or depend on questions that are not there.
        """
        questions = row["question_natural_language"]
        numbers, dependencies = row["proposition_id"], row["dependency"]
        if not questions or not len(questions) == len(numbers) == len(dependencies):
            lengths = ", ".join(f"{len(row[column])} under {column}" for column in self.requires)
            raise ValueError(f"{lengths}: expected one entry per question, and at least one")
        try:
            share([True] * len(questions), numbers, dependencies)
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"proposition_id={numbers!r}, dependency={dependencies!r}: expected a number per question, "
                'and those of the questions that it depends on, e.g. "1,2", or "0"'
            ) from error
        return [f"{question} Answer yes or no." for question in questions]

    def score(self, row: Mapping[str, Any], answers: Sequence[Answer]) -> float:
        """Return the share of questions that count as yes.

        Raises:
            UnreadableAnswerError: an answer is neither yes nor no.
        """
        return share([is_yes(answer) for answer in answers], row["proposition_id"], row["dependency"])

    @staticmethod
    def examples() -> list[Any]:
        """Return a pair: a red circle above a blue square, to questions about the circle."""
        metadata = {
            "question_natural_language": ["Is there a circle?", "Is the circle red?"],
            "proposition_id": ["1", "2"],
            "dependency": ["0", "1"],
        }
        better, worse = (draw_shape(*drawn) for drawn in (("red", "circle"), ("blue", "square")))
        return [((better, "a red circle", metadata), (worse, "a red circle", metadata))]


def is_yes(answer: Answer) -> bool:
    """Tell whether the first yes or no of an answer is yes.

    Raises:
        UnreadableAnswerError: it has neither.
    """
    try:
        found = WORD.search(conclusion(answer.text))
    except ValueError:
        found = None
    if found is None:
        raise UnreadableAnswerError(f"the answer is neither yes nor no: {answer.text[-SHOWN:]!r}")
    return found[1].lower() == "yes"


def share(shown: Sequence[bool], numbers: Sequence[str], dependencies: Sequence[str]) -> float:
    """Return the share of questions that count as yes: none that depends on one that counts as no.

    Args:
        shown: whether each question's own answer is yes.
        numbers: of each question, the number by which others name it.
        dependencies: of each question, numbers with commas between them; 0 names no question.

    Raises:
        KeyError: a question depends on one that is not there.
        ValueError: a number is none.

    Source: dpg_bench/compute_dpg_bench.py of ELLA, which goes through the questions once, in their order.
    """
    counts = {int(number): own for own, number in zip(shown, numbers, strict=True)}
    for number, names in zip(numbers, dependencies, strict=True):
        parents = [int(name) for name in names.split(",") if int(name)]
        counts[int(number)] &= all(counts[parent] for parent in parents)
    return sum(counts.values()) / len(counts)
