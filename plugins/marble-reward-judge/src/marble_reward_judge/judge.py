"""The `judge` reward: a vision-language model that answers the user's own question."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

from torch import Tensor

from marble_reward_judge.chat import ChatServer, Pictures, ServerError
from marble_reward_judge.completion import Answer
from marble_reward_judge.likelihood import REQUEST, ExpectedValue
from marble_reward_judge.score import ScoreReader, UnreadableAnswerError
from marble_reward_judge.settings import ServerSettings

Scores = list[float | Exception]
Reader = Callable[[Answer], float]


@dataclass(repr=False, eq=False)
class Questioner(ServerSettings):
    """What a judge asks about pictures, and how it reads the answers.

    Attributes:
        template: the question, which follows the pictures; `{prompt}` is replaced by the prompt.
        pattern: a regular expression with one group, the score; its last match counts. Either this, or:
        json_key: key of the score in a JSON object in the answer.
        low: the lowest score on the judge's scale; an answer outside the scale is a failure.
        high: the highest score.
        raw: return scores as they are, instead of mapping [low, high] onto [0, 1].
        answers: values of answers, such as {"yes": 1, "no": 0}. The score is their expected value over the
            probabilities of the answer's first token, which the server has to return. `pattern`, `json_key`,
            `low`, `high` and `max_tokens` do not count then.
        allow_text: with `answers`, take the value of the answer's text if there are no probabilities.
        aspects: several scores of a picture. With `answers` each has a question of its own, in which
            `{aspect}` is replaced by its name. Else one answer has all: by a `pattern` in which `{aspect}` is
            replaced by its name, or by the keys of their names in a JSON object instead of `json_key`, which
            the template has to ask for.
    """

    license = "Apache-2.0; the model under its own licence"
    citation = "of the model that is asked"

    template: str = field(kw_only=True)
    pattern: str | None = None
    json_key: str | None = None
    low: float | None = None
    high: float | None = None
    raw: bool = False
    answers: Mapping[str, float] | None = None
    allow_text: bool = False
    aspects: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check and keep the question and the server's settings; nothing is sent.

        Raises:
            ValueError: an option is invalid, or the variable with the key is not set or holds no key.
        """
        super().__post_init__()
        self.aspects = tuple(self.aspects)
        aspects, low, high = self.aspects, self.low, self.high
        named = aspects if self.answers or self.pattern is None else ()
        _check_template(self.template, named, "{aspect}" if self.answers else None)
        self.one_question_each = bool(self.answers and aspects)
        self.read: list[Reader]
        if self.answers:
            self.read = [ExpectedValue(self.answers, self.allow_text)] * (len(aspects) or 1)
            low, high = min(self.answers.values()), max(self.answers.values())
            self.extra_body, self.max_tokens = {**REQUEST, **(self.extra_body or {})}, 1
        elif self.pattern is not None:
            patterns = _patterns(self.pattern, aspects)
            self.read = [ScoreReader(own, self.json_key, low, high) for own in patterns]
        else:
            self.read = [ScoreReader(None, key, low, high) for key in aspects or (self.json_key,)]
        self.offset, self.scale = 0.0, 1.0
        if not self.raw:
            if low is None or high is None or not isfinite(high - low):
                raise ValueError("give low and high, the judge's scale, or raw=true")
            self.offset, self.scale = low, high - low
        self.range = (low, high) if self.raw else (0.0, 1.0)
        self.server = ChatServer(self)

    def score(self, pictures: Sequence[Pictures], prompts: Sequence[str]) -> Scores | dict[str, Scores]:
        """Score a batch.

        Args:
            pictures: those that the question about each prompt shows, uint8 [3, H, W]; sent at this size.
            prompts: B prompts.

        Returns:
            B scores, or B scores per aspect; an error takes the place of a score that could not be had.

        Raises:
            ServerError: the server refuses the key, or knows no such model or address.
        """
        asked = self.aspects if self.one_question_each else ("",)
        questions = [
            self.template.replace("{aspect}", aspect).replace("{prompt}", prompt)
            for aspect in asked
            for prompt in prompts
        ]
        answers = self.server.ask([*pictures] * len(asked), questions)
        rows = [answers[start : start + len(prompts)] for start in range(0, len(answers), len(prompts))]
        rows = rows if self.one_question_each else rows * len(self.read)
        scores = [
            [self._score(read, answer) for answer in row] for read, row in zip(self.read, rows, strict=True)
        ]
        return dict(zip(self.aspects, scores, strict=True)) if self.aspects else scores[0]

    def _score(self, read: Reader, answer: Answer | ServerError) -> float | Exception:
        """Read one score of an answer; return the error if it cannot be had."""
        if isinstance(answer, ServerError):
            return answer
        try:
            return (read(answer) - self.offset) / self.scale
        except UnreadableAnswerError as error:
            return error


class Judge(Questioner):
    """Score of the picture by a vision-language model behind an OpenAI-compatible server."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Scores | dict[str, Scores]:
        """Score a batch as `score` does: images uint8 [B, 3, H, W] of B prompts, sent at this size."""
        return self.score([(image,) for image in images], prompts)


class EditJudge(Questioner):
    """Score of an edited picture, by a vision-language model that sees the pictures before and after."""

    def __call__(
        self, images: Tensor, prompts: Sequence[str], references: Sequence[Sequence[Tensor]]
    ) -> Scores | dict[str, Scores]:
        """Score a batch as `score` does, with the pictures before the edit first.

        Args:
            images: uint8 [B, 3, H, W], the edited pictures.
            prompts: B instructions.
            references: B sequences of uint8 [3, h, w], the pictures that they were edited from.
        """
        shown = [(*before, after) for before, after in zip(references, images, strict=True)]
        return self.score(shown, prompts)


def _check_template(template: str, aspects: Sequence[str], placeholder: str | None) -> None:
    """Check that the question has the prompt, and asks for every aspect: by a placeholder, or by its name."""
    if "{prompt}" not in template:
        raise ValueError(f"template={template!r}: expected {{prompt}} where the prompt belongs")
    for aspect in aspects:
        if (placeholder or aspect) not in template:
            raise ValueError(
                f"template={template!r} does not ask for {aspect!r}: expected {placeholder or aspect}"
            )


def _patterns(pattern: str, aspects: Sequence[str]) -> list[str]:
    """Return the pattern of each aspect; the pattern itself if there are none."""
    if aspects and "{aspect}" not in pattern:
        raise ValueError(f"pattern={pattern!r}: expected {{aspect}} where the name of each aspect belongs")
    return [pattern.replace("{aspect}", re.escape(aspect)) for aspect in aspects] or [pattern]
