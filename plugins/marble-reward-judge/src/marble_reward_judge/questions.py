"""Ask a judge several questions about each picture."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from marble_reward_judge.chat import ChatServer, ServerError
from marble_reward_judge.completion import Answer
from marble_reward_judge.score import UnreadableAnswerError
from marble_reward_judge.settings import ServerSettings


@dataclass(repr=False, eq=False)
class Questions(ServerSettings, ABC):
    """Questions to a model behind an OpenAI-compatible server; a reward reads the answers."""

    range = (0.0, 1.0)
    model: str = "Qwen/Qwen3-VL-8B-Instruct"

    def __post_init__(self) -> None:
        """Check and keep the settings of the server; nothing is sent.

        Raises:
            ValueError: an option is invalid, or the variable with the key is not set or holds no key.
        """
        super().__post_init__()
        self.server = ChatServer(self)

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> list[float | Exception]:
        """Score a batch.

        Args:
            images: uint8 [B, 3, H, W]; sent at this size.
            prompts: B prompts, for messages.
            metadata: B mappings with what the reward requires.

        Returns:
            B scores in [0, 1]; an error takes the place of a score that could not be had.

        Raises:
            ServerError: the server refuses the key, or knows no such model or address.
        """
        faults: dict[int, ValueError] = {}
        questions: list[list[str]] = []
        for place, (prompt, row) in enumerate(zip(prompts, metadata, strict=True)):
            try:
                questions.append(self.questions(row))
            except ValueError as error:
                faults[place] = ValueError(f"metadata of the prompt {prompt!r}: {error}")
                questions.append([])
        scores: list[float | Exception] = []
        for place, answers in enumerate(self.ask(images, questions)):
            known = faults.get(place, answers)
            try:
                scores.append(known if isinstance(known, Exception) else self.score(metadata[place], known))
            except UnreadableAnswerError as error:
                scores.append(error)
        return scores

    @abstractmethod
    def questions(self, row: Mapping[str, Any]) -> list[str]:
        """Return the questions about a picture whose prompt has this metadata.

        Raises:
            ValueError: it asks no question, or is malformed.
        """

    @abstractmethod
    def score(self, row: Mapping[str, Any], answers: Sequence[Answer]) -> float:
        """Return the score in [0, 1] by the answers to `questions`.

        Raises:
            UnreadableAnswerError: an answer does not say what was asked.
        """

    def ask(self, images: Tensor, questions: Sequence[Sequence[str]]) -> list[list[Answer] | ServerError]:
        """Ask the questions of each picture.

        Args:
            images: uint8 [B, 3, H, W].
            questions: of each image.

        Returns:
            The answers about each image; an error in their place if one could not be had.

        Raises:
            ServerError: the server refuses the key, or knows no such model or address.
        """
        repeated = [(image,) for image, own in zip(images, questions, strict=True) for _ in own]
        answers = iter(self.server.ask(repeated, [question for own in questions for question in own]))
        every: list[list[Answer] | ServerError] = []
        for own in questions:
            mine = [next(answers) for _ in own]
            errors = [answer for answer in mine if isinstance(answer, ServerError)]
            every.append(errors[0] if errors else [a for a in mine if isinstance(a, Answer)])
        return every
