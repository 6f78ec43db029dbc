"""Ask a judge several questions about each picture."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from marble_reward_judge.chat import ChatServer, ServerError
from marble_reward_judge.completion import Answer
from marble_reward_judge.settings import ServerSettings


@dataclass(repr=False, eq=False)
class Questions(ServerSettings):
    """Questions to a model behind an OpenAI-compatible server; a reward reads the answers."""

    range = (0.0, 1.0)
    model: str = "Qwen/Qwen3-VL-8B-Instruct"

    def __post_init__(self) -> None:
        """Check and keep the settings of the server; nothing is sent.

        Raises:
            ValueError: an option is invalid, or the variable with the key is not set or holds no key.
        """
        self.server = ChatServer(self)

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
