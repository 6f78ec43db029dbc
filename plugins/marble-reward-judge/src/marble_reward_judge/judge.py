"""The `judge` reward: a vision-language model that answers the user's own question."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from marble_reward_judge.chat import ChatServer, ServerError
from marble_reward_judge.score import ScoreReader, UnreadableAnswerError

Scores = list[float | Exception]


class Judge:
    """Score of the picture by a vision-language model behind an OpenAI-compatible server."""

    license = "Apache-2.0; the model under its own licence"
    citation = "of the model that is asked"

    def __init__(
        self,
        base_url: str,
        model: str,
        template: str,
        pattern: str | None = None,
        json_key: str | None = None,
        low: float | None = None,
        high: float | None = None,
        raw: bool = False,
        api_key_env: str | None = None,
        temperature: float | None = 0.0,
        max_tokens: int | None = 512,
        concurrency: int = 16,
        request_timeout: float = 60.0,
        attempts: int = 4,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        """Check and keep the question and the server's settings; nothing is sent.

        Args:
            base_url: address of the server, e.g. http://127.0.0.1:8000/v1.
            model: name of the model on the server.
            template: the question, which follows the picture; `{prompt}` is replaced by the prompt.
            pattern: a regular expression with one group, the score; its last match counts. Either this, or:
            json_key: key of the score in a JSON object in the answer.
            low: the lowest score on the judge's scale; an answer outside the scale is a failure.
            high: the highest score.
            raw: return scores as they are, instead of mapping [low, high] onto [0, 1].
            api_key_env: name of the environment variable with the key, which is written nowhere.
            temperature: of sampling; 0 takes the likeliest token; None leaves it to the server.
            max_tokens: largest length of an answer; None leaves it to the server.
            concurrency: largest number of simultaneous requests.
            request_timeout: seconds for one request.
            attempts: largest number of requests for one answer.
            extra_body: further keys of a request, e.g. {"max_completion_tokens": 512}.

        Raises:
            ValueError: an option is invalid, or the variable with the key is not set or holds no key.
        """
        if "{prompt}" not in template:
            raise ValueError(f"template={template!r}: expected {{prompt}} where the prompt belongs")
        self.read = ScoreReader(pattern, json_key, low, high)
        self.offset, self.scale = 0.0, 1.0
        if not raw:
            if low is None or high is None:
                raise ValueError("give low and high, the judge's scale, or raw=true")
            self.offset, self.scale = low, high - low
        self.range = (low, high) if raw else (0.0, 1.0)
        self.template = template
        self.server = ChatServer(
            base_url,
            model,
            api_key_env,
            temperature,
            max_tokens,
            concurrency,
            request_timeout,
            attempts,
            extra_body,
        )

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        """Score a batch.

        Args:
            images: uint8 [B, 3, H, W]; sent at this size.
            prompts: B prompts.

        Returns:
            B scores; an error takes the place of a score that could not be had.

        Raises:
            ServerError: the server refuses the key, or knows no such model or address.
        """
        questions = [self.template.replace("{prompt}", prompt) for prompt in prompts]
        scores: Scores = []
        for answer in self.server.ask(list(images), questions):
            if isinstance(answer, ServerError):
                scores.append(answer)
                continue
            try:
                scores.append((self.read(answer) - self.offset) / self.scale)
            except UnreadableAnswerError as error:
                scores.append(error)
        return scores
